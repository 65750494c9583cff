"""The app: run this file or ``fastntk demo``. The folder is also a complete Hugging Face Space."""

from __future__ import annotations

from copy import deepcopy
from html import escape
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastntk_sk.demo import page
from fastntk_sk.demo.session import VIEWS, Session, learn_example, learn_folder
from fastntk_sk.escaping import visible
from fastntk_sk.exceptions import FastNTKError

TITLE = "Forget these pictures"
ABOUT = (
    f"# {TITLE}\n"
    "A pretrained network has learned pictures with their labels, and some of the labels are wrong. "
    "**Look** at those that the model doubts, **tick** pictures, and press **Forget**: they are "
    "subtracted from the model, without training it again. The example has forgotten its most doubtful "
    "pictures already. The method is Fast-NTK, [arXiv:2312.14923](https://arxiv.org/abs/2312.14923)."
)
# no pictures in the browser's storage, no files from it, and no more sessions than memory holds
LAUNCH = {
    "footer_links": ["gradio", "settings"],
    "run_history": False,
    "max_file_size": 1,
    "state_session_capacity": 100,
}
ON_CLICK = """
element.addEventListener("click", (event) => {
  const card = event.target.closest("button.card");
  if (card) trigger("click", {place: Number(card.dataset.place)});
});
"""
TO_RESULT = (
    '() => document.getElementById("result").scrollIntoView({behavior: "smooth", block: "nearest"})'
)


class OwnPage:
    """Refuse what pages of other sites and ports send, and frames of others around the app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if urlsplit(headers.get("origin", f"//{headers['host']}")).netloc != headers["host"]:
            refused = PlainTextResponse("This app listens to its own page alone.", status_code=403)
            await refused(scope, receive, send)
            return

        async def unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = "frame-ancestors 'none'"
            await send(message)

        await self.app(scope, receive, unframed)


def sentence(error: Exception) -> gr.Error:
    """Return what the page says of an error; gradio takes it as HTML."""
    return gr.Error(escape(visible(error)), print_exception=False)


def build(local: bool = False, **parameters: Any) -> gr.Blocks:
    """Return the app, with parameters of `FastNTKClassifier`; its example is learned now, once.

    `local` lets the person name an image folder of this machine: never set it on a server.
    """
    example = learn_example(**parameters)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        session, number = gr.State(example), gr.State(0)  # each person gets a copy
        gr.Markdown(ABOUT)
        folder = gr.Textbox(
            label="A folder of yours, with a subfolder of pictures for each class",
            placeholder="/home/me/pictures",
            submit_btn="Learn",
            visible=local,
            elem_id="folder",
        )
        summary = gr.HTML(elem_id="summary")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                view = gr.Radio(page.names(example), value=VIEWS[0], label="Pictures", elem_id="views")
                cards = gr.HTML(css_template=page.CSS, js_on_load=ON_CLICK, elem_id="pictures")
                with gr.Row():
                    back = gr.Button("Previous", size="sm", min_width=90, elem_id="back")
                    span = gr.HTML(elem_id="span")
                    on = gr.Button("Next", size="sm", min_width=90, elem_id="on")
                with gr.Row():
                    tick = gr.Button(size="sm", min_width=140, elem_id="tick")
                    untick = gr.Button("Untick all", size="sm", min_width=140, elem_id="untick")
                forget = gr.Button(variant="stop", elem_id="forget")
            with gr.Column(scale=2, min_width=320):
                result = gr.HTML(css_template=page.CSS, elem_id="result")
                files = gr.HTML(css_template=page.CSS, elem_id="files")
                with gr.Accordion("The receipts in full", open=False):
                    receipts = gr.Code(language="json", max_lines=15, show_label=False)
                again = gr.Button("Start again with the example", size="sm", elem_id="again")

        def looked(held: Session, name: str, at: int = 0) -> dict:
            """Return what changes when the person ticks pictures or turns pages."""
            last = page.n_pages(held, name) - 1
            at = max(0, min(at, last))
            n_picked, to_pick = len(held.picked), held.to_pick(name)
            return {
                session: held,
                number: at,
                view: gr.update(choices=page.names(held), value=name),
                cards: page.cards(held, name, at),
                span: page.span(held, name, at),
                back: gr.update(interactive=at > 0),
                on: gr.update(interactive=at < last),
                tick: gr.update(value=f"Tick all {len(to_pick) or ''}", interactive=bool(to_pick)),
                untick: gr.update(interactive=n_picked > 0),
                forget: gr.update(value=page.to_forget(held), interactive=n_picked > 0),
            }

        def opened(held: Session) -> dict:
            """Return all that changes when a model does."""
            return {
                **looked(held, VIEWS[0] if held.doubts else VIEWS[1]),
                summary: page.summary(held),
                result: page.result(held),
                files: page.downloads(held),
                receipts: held.receipts(),
            }

        def on_learn(place: str) -> dict:
            try:
                return opened(learn_folder(place, **parameters))
            except (FastNTKError, ValueError, OSError) as error:
                raise sentence(error) from error

        def on_forget(held: Session) -> dict:
            try:
                held.forget()
            except (FastNTKError, ValueError) as error:
                raise sentence(error) from error
            return opened(held)

        def on_card(held: Session, name: str, at: int, event: gr.EventData) -> dict:
            held.turn(event.place)
            return looked(held, name, at)

        def on_tick(held: Session, name: str, at: int) -> dict:
            held.picked |= set(held.to_pick(name))
            return looked(held, name, at)

        def on_untick(held: Session, name: str, at: int) -> dict:
            held.picked.clear()
            return looked(held, name, at)

        every = [session, number, view, cards, span, back, on, tick, untick, forget]
        every += [summary, result, files, receipts]
        here = [session, view, number]
        quick = {"outputs": every, "show_progress": "hidden", "trigger_mode": "multiple"}
        slow = {"outputs": every, "show_progress_on": [cards, result]}
        app.load(opened, [session], every, show_progress="hidden")
        again.click(lambda: opened(deepcopy(example)), None, **slow)
        view.input(looked, [session, view], **quick)
        back.click(lambda held, name, at: looked(held, name, at - 1), here, **quick)
        on.click(lambda held, name, at: looked(held, name, at + 1), here, **quick)
        cards.click(on_card, here, **quick)
        tick.click(on_tick, here, **quick)
        untick.click(on_untick, here, **quick)
        forget.click(on_forget, [session], **slow).success(None, js=TO_RESULT)
        if local:
            folder.submit(on_learn, [folder], every, show_progress_on=[summary])
    return app


def serve(port: int, *, quiet: bool = False, **parameters: Any) -> None:
    """Run the app for the person at this machine.

    A page of another site that lets its own name stand for 127.0.0.1 is refused by the Host header,
    any other page by its origin.
    """
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    build(local=True, **parameters).launch(
        server_name="127.0.0.1",
        server_port=port,
        quiet=quiet,
        ssr_mode=False,  # a server of Node in front would send a Host header of its own
        app_kwargs={"middleware": [hosts, Middleware(OwnPage)]},
        **LAUNCH,
    )


if __name__ == "__main__":
    build().launch(**LAUNCH)

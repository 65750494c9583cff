"""The app: run this file or ``fastntk demo``. The folder is also a complete Hugging Face Space."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fastntk_sk.demo.session import Session, learn
from fastntk_sk.escaping import visible

ABOUT = (
    "# Forget these pictures\n"
    "A pretrained network learns pictures, the first of them under wrong labels. Pick some and press "
    "*Forget*: their part is subtracted in closed form, without the others. "
    "Fast-NTK, [arXiv:2312.14923](https://arxiv.org/abs/2312.14923)."
)


def build(local: bool = False, **parameters: Any) -> gr.Blocks:
    """Return the app, with parameters of `FastNTKClassifier`.

    `local` lets the person name an image folder of this machine: never set it on a server.
    """
    with gr.Blocks(title="Forget these pictures", analytics_enabled=False) as app:
        gr.Markdown(ABOUT)
        session, chosen = gr.State(None), gr.State(set())
        folder = gr.Textbox(label="Image folder (empty: handwritten digits)", visible=local)
        start = gr.Button("Learn", variant="primary", elem_id="learn")
        gallery = gr.Gallery(
            label="Pick pictures (label: what the model sees; ✓ picked, ✗ forgotten)",
            columns=4,
            allow_preview=False,
            elem_id="pictures",
            height="auto",
        )
        with gr.Row():
            forget = gr.Button("Forget", variant="stop", elem_id="forget", interactive=False)
            summary = gr.Markdown(elem_id="summary")
        receipts = gr.Code(language="json", label="Receipts", elem_id="receipts")

        def shown(held: Session, picked: set[int]) -> tuple:
            return (
                held,
                picked,
                gr.update(value=held.gallery(picked), selected_index=None),
                held.summary(),
                held.receipts(),
                gr.update(interactive=bool(picked)),
            )

        def on_learn(place: str) -> tuple:
            try:
                return shown(learn(place if local else "", **parameters), set())
            except (ValueError, OSError) as error:
                raise gr.Error(escape(visible(error))) from error  # gradio shows it as HTML

        def on_pick(held: Session, picked: set[int], event: gr.SelectData) -> tuple:
            if event.index not in held.forgotten:
                picked = picked ^ {event.index}
            return shown(held, picked)

        def on_forget(held: Session, picked: set[int]) -> tuple:
            try:
                held.forget(picked)
            except ValueError as error:
                raise gr.Error(escape(visible(error))) from error
            return shown(held, set())

        out = [session, chosen, gallery, summary, receipts, forget]
        # without postprocessing, which would write every picture to a cache on disk
        start.click(on_learn, [folder], out, postprocess=False)
        gallery.select(on_pick, [session, chosen], out, postprocess=False)
        forget.click(on_forget, [session, chosen], out, postprocess=False)
    return app


def serve(port: int, *, quiet: bool = False, **parameters: Any) -> None:
    """Run the app for the person at this machine.

    A page of another site that lets its own name stand for 127.0.0.1 is refused by the Host header.
    """
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    build(local=True, **parameters).launch(
        server_name="127.0.0.1",
        server_port=port,
        quiet=quiet,
        ssr_mode=False,  # a server of Node in front would send a Host header of its own
        app_kwargs={"middleware": [hosts]},
    )


if __name__ == "__main__":
    build().launch()

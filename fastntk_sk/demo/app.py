"""The app: run this file or ``fastntk demo``. The folder is also a complete Hugging Face Space."""

from __future__ import annotations

from typing import Any

import gradio as gr

from fastntk_sk.demo.session import Session, learn

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
                raise gr.Error(str(error)) from error

        def on_pick(held: Session, picked: set[int], event: gr.SelectData) -> tuple:
            if event.index not in held.forgotten:
                picked = picked ^ {event.index}
            return shown(held, picked)

        def on_forget(held: Session, picked: set[int]) -> tuple:
            try:
                held.forget(picked)
            except ValueError as error:
                raise gr.Error(str(error)) from error
            return shown(held, set())

        out = [session, chosen, gallery, summary, receipts, forget]
        start.click(on_learn, [folder], out)
        gallery.select(on_pick, [session, chosen], out)
        forget.click(on_forget, [session, chosen], out)
    return app


if __name__ == "__main__":
    build().launch()

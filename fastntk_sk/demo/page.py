"""What the app shows of a session, as HTML in which the pictures stand themselves."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from fastntk_sk.demo.session import VIEWS, Picture, Session, Step
from fastntk_sk.escaping import visible
from fastntk_sk.wording import counted

ON_PAGE = 24  # pictures
_STRIP = 8  # pictures of what changed, beside the figures
_BARS = 6  # steps in the chart
_NAMES = {
    "doubtful": "Doubtful labels",
    "learned": "All learned",
    "forgotten": "Forgotten",
    "changed": "Read differently now",
}
_NOTHING = {
    "doubtful": "The model doubts none of the labels.",
    "learned": "Nothing is learned.",
    "forgotten": "Nothing is forgotten yet.",
    "changed": "The last deletion has changed what the model reads in none of the held-out pictures.",
}
_TYPES = {".jsonl": "application/jsonl", ".zip": "application/zip"}

CSS = """
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(max(84px, 14%), 1fr)); gap: 10px;
}
.card {
  position: relative; margin: 0; padding: 6px; text-align: center; font-size: 13px; font-weight: 400;
  line-height: 1.35;
  border: 2px solid var(--border-color-primary); border-radius: 8px; overflow-wrap: anywhere;
  background: var(--background-fill-primary); color: var(--body-text-color);
}
.card img {
  display: block; width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0 0 4px; border-radius: 4px;
}
.card .note { display: block; }
.card .right { color: #15803d; }
.card .wrong { color: #b91c1c; }
.dark & .card .right { color: #4ade80; }
.dark & .card .wrong { color: #f87171; }
.card.gone img { opacity: 0.45; }
button.card { cursor: pointer; }
button.card:hover { border-color: var(--color-accent); }
button.card::after {
  content: ""; position: absolute; top: 10px; right: 10px; width: 22px; height: 22px;
  box-sizing: border-box; border: 2px solid #fff; border-radius: 5px;
  background: rgba(0, 0, 0, 0.55); color: #fff; font-size: 15px; font-weight: 700; line-height: 18px;
}
button.card[aria-pressed="true"] {
  border-color: var(--color-accent); box-shadow: 0 0 0 2px var(--color-accent);
}
button.card[aria-pressed="true"]::after { content: "✓"; background: var(--color-accent); }
.chart, .cards { margin: 8px 0 16px; }
.chart { display: grid; grid-template-columns: max-content 1fr; gap: 6px 10px; align-items: center; }
.bar { display: flex; align-items: center; gap: 6px; }
.bar i { height: 18px; min-width: 2px; border-radius: 3px; background: var(--border-color-primary); }
.bar.now i { background: var(--color-accent); }
.bar.now { font-weight: 700; }
.downloads { display: flex; flex-wrap: wrap; gap: 10px; }
.downloads a {
  flex: 1 1 150px; padding: 8px 12px; text-align: center; border-radius: 8px; text-decoration: none;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color);
}
"""


def names(session: Session) -> list[tuple[str, str]]:
    """Return what each of `VIEWS` is called, with how many pictures are in it."""
    return [(f"{_NAMES[view]} ({len(session.places(view)):,})", view) for view in VIEWS]


def n_pages(session: Session, view: str) -> int:
    """Return the number of pages of a view, one at least."""
    return max(1, math.ceil(len(session.places(view)) / ON_PAGE))


def summary(session: Session) -> str:
    """Return one paragraph about the model."""
    n_gone, n_held_out = len(session.forgotten), len(session.held_out)
    text = f"<b>{_text(session.name)}</b>: {counted(len(session.learned) - n_gone, 'picture')} learned, "
    text += f"{n_gone:,} forgotten."
    if n_held_out:
        right = 1 - session.steps[-1].n_mistakes / n_held_out
        never = counted(n_held_out, "picture")
        text += f" Of {never} that it never learned, it reads {right:.1%} right."
    return f"<p>{text}</p>"


def cards(session: Session, view: str, page: int) -> str:
    """Return the pictures of one page of a view; those that are learned can be picked."""
    places = session.places(view)
    if not places:
        return f"<p>{_NOTHING[view]}</p>"
    here = places[page * ON_PAGE :][:ON_PAGE]
    return _cards([_card(session, view, place) for place in here])


def span(session: Session, view: str, page: int) -> str:
    """Return which pictures of a view are on a page, such as "1 to 24 of 86"."""
    n, first = len(session.places(view)), page * ON_PAGE
    if not n:
        return ""
    places = f"{first + 1:,} to {min(first + ON_PAGE, n):,} of {n:,}"
    return f'<p style="text-align: center">{places}</p>'


def to_forget(session: Session) -> str:
    """Return the caption of the button that forgets."""
    n = len(session.picked)
    return f"Forget {counted(n, 'picture')}" if n else "Forget (tick pictures first)"


def result(session: Session) -> str:
    """Return what the last deletion changed: mistakes as a chart, and the pictures read differently."""
    parts = [f"<h3>{'What the last deletion changed' if len(session.steps) > 1 else 'The model'}</h3>"]
    if session.held_out:
        parts.append(f"<p>Mistakes on {counted(len(session.held_out), 'picture')} never learned:</p>")
        parts.append(_chart(session.steps))
    else:
        parts.append("<p>No picture is held out to measure with: each class needs five.</p>")
    if len(session.steps) > 1:
        parts += _changes(session)
        planted = [i for i, picture in enumerate(session.learned) if picture.truth is not None]
        if planted:
            n_found = sum(i in session.forgotten for i in planted)
            parts.append(
                f"<p>{len(planted)} of the labels were made wrong on purpose: {n_found} of these "
                "pictures are forgotten so far.</p>"
            )
        receipt = session.classifier.receipts_[-1]
        parts.append(
            f"<p>The last deletion took {receipt['seconds']:.2f} s, without the pictures that stay. "
            f"It is {_text(session.exactness())}.</p>"
        )
    else:
        parts.append("<p>Nothing is forgotten yet. Tick pictures and press <b>Forget</b>.</p>")
    return "".join(parts)


def downloads(session: Session) -> str:
    """Return links whose files stand in the page itself."""
    links = []
    for name, content in session.downloads().items():
        url = _url(content, _TYPES[Path(name).suffix])
        size = f"{max(1, round(len(content) / 1000)):,} kB"
        links.append(f'<a href="{url}" download="{name}">\N{DOWNWARDS ARROW} {name} ({size})</a>')
    return f'<div class="downloads">{"".join(links)}</div>'


def _changes(session: Session) -> list[str]:
    """Return how many held-out pictures are read differently, and the first of them."""
    before, now = session.steps[-2:]
    changed = session.places("changed")
    if not changed:
        return []
    labels = [picture.label for picture in session.held_out]
    n_mended = sum(now.readings[i] == labels[i] for i in changed)
    n_broken = sum(before.readings[i] == labels[i] for i in changed)
    text = f"{counted(len(changed), 'picture')} read differently after the last deletion: "
    text += f"{n_mended:,} now right, {n_broken:,} now wrong."
    if n_broken > n_mended:
        text += " What was forgotten had helped."
    strip = _cards([_card(session, "changed", i) for i in changed[:_STRIP]])
    return [f"<p>{text}</p>", strip]


def _chart(steps: Sequence[Step]) -> str:
    """Return the number of mistakes after each step as bars, the latest marked."""
    shown = [steps[0], *steps[1:][-_BARS + 1 :]]
    most = max(1, *(step.n_mistakes for step in shown))
    rows = []
    for step in shown:
        name = f"{step.n_forgotten:,} forgotten" if step.n_forgotten else "as learned"
        now = " now" if step is steps[-1] else ""
        width = 85 * step.n_mistakes / most
        rows.append(
            f'<span>{name}</span><span class="bar{now}"><i style="width: {width:.1f}%"></i>'
            f"{step.n_mistakes:,}</span>"
        )
    return f'<div class="chart">{"".join(rows)}</div>'


def _cards(cards: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(session: Session, view: str, place: int) -> str:
    """Return a picture with what is to be said of it: a button where it can be picked."""
    if view == "changed":
        picture = session.held_out[place]
        before, now = (step.readings[place] for step in session.steps[-2:])
        kind = "right" if now == picture.label else "wrong"
        note = f"read as {_text(before)},<br>now {_text(now)}"
        return _still(picture, f"a {_text(picture.label)}", note, kind)
    picture = session.learned[place]
    label = _text(picture.label)
    if view == "forgotten":
        note = f"now read as {_text(session.forgotten[place])}"
        return _still(picture, f"was labelled {label}", note, "gone")
    note = f"looks like {_text(session.doubts[place])}" if place in session.doubts else ""
    pressed = "true" if place in session.picked else "false"
    return (
        f'<button type="button" class="card" data-place="{place}" aria-pressed="{pressed}">'
        f'{_img(picture)}labelled {label}<span class="note">{note}</span></button>'
    )


def _still(picture: Picture, text: str, note: str, kind: str) -> str:
    note = f'<span class="note {kind}">{note}</span>'
    return f'<div class="card {kind}">{_img(picture)}{text}{note}</div>'


def _img(picture: Picture) -> str:
    """Return a picture as it may stand in the page, in no file; small ones are enlarged smoothly."""
    image = Image.fromarray(np.ascontiguousarray(picture.pixels)).convert("RGB")
    if max(image.size) < 96:
        scale = 96 / max(image.size)
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BICUBIC)
    written = io.BytesIO()
    image.save(written, format="jpeg", quality=85)
    return f'<img alt="" src="{_url(written.getvalue(), "image/jpeg")}">'


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _text(name: str) -> str:
    """Return a name that somebody else chose as it may stand in the page."""
    return escape(visible(name))

"""Pieces of a static page in one file: no script, pictures inside, all text escaped."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --ink: #1d2126; --dim: #626a73; --line:
  #e2e4e7;
  --accent: #2f6fb3; --second: #c9762b; --bad: #b3362f; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1c2024; --ink: #e6e8ea; --dim:
  #9aa3ac;
  --line: #30363c; --accent: #6aa9e9; --second: #e39a57; --bad: #ef7d76; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 14px; margin: 18px 0 6px; overflow-wrap: anywhere; font-weight: 600; }
h3 small { font-weight: 400; color: var(--dim); }
p { margin: 6px 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
.dim { color: var(--dim); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; font-size: 14px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin:
  20px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  }
.tile b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: 13px; }
.tile.bad b { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align:
  top;
  overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 500; }
th:first-child, td:first-child { min-width: 9em; }
td + td { font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 10px; }
.figures.wide { grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow:
  hidden;
  min-width: 0; }
figure .shots { display: flex; gap: 2px; background: var(--line); }
figure img { flex: 1 1 0; min-width: 0; width: 100%; aspect-ratio: 1; object-fit: cover; display: block;
  background: var(--back); }
img.pixels { image-rendering: pixelated; }
.figures.whole img { object-fit: contain; }
figcaption { padding: 6px 8px 8px; font-size: 12px; line-height: 1.35; color: var(--dim); overflow-wrap:
  anywhere; }
figcaption b { display: block; color: var(--ink); font-weight: 600; }
figcaption span { display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow:
  hidden; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap:
  18px; }
.chart { min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; }
.chart h3 { margin: 0 0 8px; }
.bars { display: grid; grid-template-columns: minmax(60px, max-content) 1fr max-content; gap: 3px 10px;
  font-size: 13px;
  align-items: center; }
.bars > div { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width:
  16em; }
.bars .value { color: var(--dim); font-variant-numeric: tabular-nums; text-align: right; }
.bars svg { display: block; width: 100%; height: 12px; border-radius: 3px; background: var(--line); }
.first { fill: var(--accent); } .second { fill: var(--second); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 5px 0 12px; }
.key.first { background: var(--accent); } .key.second { background: var(--second); }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One picture, or several side by side, with a caption."""

    picture: bytes
    """A JPEG."""
    title: str
    lines: tuple[str, ...] = ()
    others: tuple[bytes, ...] = ()
    """More JPEGs to the right."""
    is_small: bool = False
    """Show its pixels when it is enlarged."""


def escape(text: object) -> str:
    """Return text that stays text, in an element and in an attribute; names of files are hostile."""
    return html.escape(str(text).encode("utf-8", "replace").decode())


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole HTML file."""
    # For the reader's safety, should an escape ever be missing: no script runs, nothing is fetched.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table of texts."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = (f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = f"<tr>{heads}</tr>" if any(head) else ""
    return f'<div class="scroll"><table>{top}{"".join(lines)}</table></div>'


def tiles(numbers: Iterable[tuple[str, str, bool]]) -> str:
    """Return large numbers, each with its name and whether it is bad news."""
    parts = (
        f'<div class="tile{" bad" if is_bad else ""}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value, is_bad in numbers
    )
    return f'<div class="tiles">{"".join(parts)}</div>'


def figures(shown: Iterable[Figure], kind: str = "") -> str:
    """Return a grid of pictures; `kind` "wide" is for pairs, "whole" for pictures not to be cropped."""
    return f'<div class="figures {kind}">{"".join(map(_figure, shown))}</div>'


def _figure(figure: Figure) -> str:
    pixels = ' class="pixels"' if figure.is_small else ""
    images = "".join(
        f'<img{pixels} alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
        for picture in (figure.picture, *figure.others)
    )
    lines = "".join(f'<span title="{escape(line)}">{escape(line)}</span>' for line in figure.lines)
    caption = f"<figcaption><b>{escape(figure.title)}</b>{lines}</figcaption>"
    return f'<figure><div class="shots">{images}</div>{caption}</figure>'


def bar_chart(title: str, bars: Sequence[tuple[str, tuple[int, int]]]) -> str:
    """Return horizontal bars of two counts each (train and eval), one upon the other."""
    longest = max((sum(pair) for _, pair in bars), default=0) or 1
    rows = "".join(_bar(name, *pair, longest) for name, pair in bars)
    return f'<div class="chart"><h3>{escape(title)}</h3><div class="bars">{rows}</div></div>'


def _bar(name: str, first: int, second: int, longest: int) -> str:
    widths = [100 * count / longest for count in (first, second)]
    return (
        f'<div title="{escape(name)}">{escape(name)}</div>'
        '<svg viewBox="0 0 100 1" preserveAspectRatio="none">'
        f'<rect class="first" width="{widths[0]:.2f}" height="1"/>'
        f'<rect class="second" x="{widths[0]:.2f}" width="{widths[1]:.2f}" height="1"/></svg>'
        f'<div class="value">{first + second:,}</div>'
    )

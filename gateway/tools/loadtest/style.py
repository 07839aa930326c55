"""How a page looks: its frame, its tables, and one style sheet, light and dark by what the reader prefers. No state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page, of parts that are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        f"{''.join(parts)}</main></body></html>\n"
    )


def table_html(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts under its title; nothing where it has no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return (
        f'<h2>{escape(title)}</h2>\n<div class="box wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def pairs_html(title: str, pairs: Mapping[str, str]) -> str:
    """Names and what they are, under a title."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs.items())
    return f'<h2>{escape(title)}</h2>\n<div class="box"><dl class="pairs">{rows}</dl></div>\n'


_STYLE = """
:root{color-scheme:light dark;--paper:#f6f6f3;--card:#fff;--ink:#17191c;--soft:#5c636b;--line:#e4e4df;--edge:#e9e9e4;
--blue:#2563c9;--teal:#0b8573;--amber:#b86e00;--red:#c8332f;--violet:#7a4fd0;--band:#17191c08;--warm:#b86e0014;
--bad:#fdeeec;--good:#e8f5f1}
@media(prefers-color-scheme:dark){:root{--paper:#0e1012;--card:#16191c;--ink:#eceef0;--soft:#9aa3ac;--line:#272c31;
--edge:#22272b;--blue:#6fa3ff;--teal:#3fcbb1;--amber:#f2b04a;--red:#ff7a72;--violet:#b497ff;--band:#ffffff08;
--warm:#f2b04a14;--bad:#32191a;--good:#11271f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%;font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:40px 28px 56px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 8px;font-weight:650;overflow-wrap:anywhere}
h2{font-size:19px;letter-spacing:-.01em;margin:40px 0 14px;font-weight:650}
h3{font-size:15px;margin:0;font-weight:650}
p{margin:0}.soft,header p{color:var(--soft)}
header p{overflow-wrap:anywhere}
header p b{color:var(--ink);font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:1px;margin:28px 0 0;padding:0;
list-style:none;
background:var(--edge);border:1px solid var(--edge);border-radius:14px;overflow:hidden}
.tiles li{background:var(--card);padding:18px 20px 16px;min-width:0}
.tiles span{display:block;color:var(--soft);font-size:13px}
.tiles b{display:block;font-size:28px;line-height:1.25;font-weight:640;letter-spacing:-.02em;white-space:nowrap}
.tiles b small{font-size:15px;font-weight:500;letter-spacing:0;color:var(--soft);margin-left:4px}
.tiles .bad b{color:var(--red)}
.say{margin:20px 0 0;padding:0;list-style:none;display:grid;gap:8px}
.say li{padding:11px 16px;border-radius:10px;background:var(--card);border:1px solid var(--edge);color:var(--soft);
font-size:14px}
.say .warning{background:var(--bad);border-color:transparent;color:var(--ink);box-shadow:inset 3px 0 0 var(--red)}
.rules{display:flex;flex-wrap:wrap;gap:8px;margin:20px 0 0;padding:0;list-style:none}
.rules li{padding:5px 13px;border-radius:99px;font-size:13.5px;background:var(--good)}
.rules li b{font-weight:620;color:var(--teal)}.rules .failed{background:var(--bad)}.rules .failed b{color:var(--red)}
.charts{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:18px}
.chart,.box{margin:0;background:var(--card);border:1px solid var(--edge);border-radius:14px;padding:18px 20px 14px;
min-width:0}
.chart:last-child:nth-child(odd){grid-column:1/-1}
figcaption p{color:var(--soft);font-size:13px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:8px 0 0;padding:0;list-style:none;font-size:13px;
color:var(--soft)}
.legend li::before{content:"";display:inline-block;width:14px;height:3px;border-radius:2px;background:currentColor;
margin-right:7px;vertical-align:middle;color:var(--hue)}
.legend .dashed::before{background:linear-gradient(90deg,currentColor 40%,#0000 40% 60%,currentColor 60%)}
.tallies{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:18px}
.tallies ul{margin:10px 0 4px;padding:0;list-style:none;display:grid;gap:9px}
.tallies li{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:3px 12px;font-size:13px}
.tallies span{color:var(--soft);overflow-wrap:anywhere}.tallies b{font-weight:600}
.tallies li>i{grid-column:1/-1;height:6px;border-radius:3px;background:var(--line);overflow:hidden}
.tallies i i{display:block;height:100%;border-radius:3px;background:var(--hue)}
.plot{display:grid;grid-template-columns:auto minmax(0,1fr);grid-template-rows:210px 26px;column-gap:10px;
margin-top:26px}
.y{position:relative;width:58px;font-size:12px;color:var(--soft)}
.y span{position:absolute;right:0;transform:translateY(50%);white-space:nowrap;line-height:1}
.area{position:relative}svg{display:block;width:100%;height:100%;overflow:visible}
.x{grid-column:2;position:relative;font-size:12px;color:var(--soft);margin-top:7px}
.x span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.x .end{transform:translateX(-100%)}
.band-name{position:absolute;top:-19px;text-align:center;font:500 11px/1.3 inherit;font-size:11px;font-style:normal;
color:var(--soft);white-space:nowrap;overflow:hidden;text-overflow:ellipsis;pointer-events:none}
.grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke;fill:none}
.line{fill:none;stroke:var(--hue);stroke-width:1.8;vector-effect:non-scaling-stroke;stroke-linejoin:round;
stroke-linecap:round}
.fill{fill:var(--hue);opacity:.11;stroke:none}.bars{fill:var(--hue);opacity:.6}
.hover{fill:transparent}.hover:hover{fill:var(--ink);opacity:.07}
.band{fill:var(--band)}.plain{fill:none}.warm{fill:var(--warm)}
.blue{--hue:var(--blue)}.teal{--hue:var(--teal)}.amber{--hue:var(--amber)}.red{--hue:var(--red)}
.violet{--hue:var(--violet)}
.grey{--hue:var(--soft)}.line.dashed{stroke-dasharray:5 4;stroke-width:1.4}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:right;padding:8px 0 8px 22px;white-space:nowrap;border-bottom:1px solid var(--edge)}
tr:last-child td{border-bottom:0}
th{font-weight:500;color:var(--soft);font-size:13px}
th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal;overflow-wrap:anywhere;min-width:130px}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:10px 28px;margin:0}
.pairs div{min-width:0}.pairs dt{color:var(--soft);font-size:13px}.pairs dd{margin:0;overflow-wrap:anywhere}
footer{margin-top:36px;color:var(--soft);font-size:13px}
@media(max-width:860px){.charts{grid-template-columns:minmax(0,1fr)}
.tallies{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media(max-width:560px){.tallies{grid-template-columns:minmax(0,1fr);gap:12px}
main{padding:24px 14px 40px}h1{font-size:23px}.chart,.box{padding:15px 14px 10px;
border-radius:12px}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}.tiles li{padding:13px 14px}.tiles b{font-size:22px}
.tiles b small{font-size:13px}.tiles li:last-child:nth-child(odd){grid-column:1/-1}
.plot{grid-template-rows:180px 26px;column-gap:8px}.y{width:48px}}
@media print{body{background:#fff}.chart,.box,.tiles{break-inside:avoid}}
"""

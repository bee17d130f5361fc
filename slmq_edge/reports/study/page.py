"""How the HTML report looks: one style sheet, for screens of 360 px and up, dark, and on paper.

Colours are those of the plots (`slmq_edge.reports.plots.style`), so that page and plots are one.
"""

from __future__ import annotations

from slmq_edge.reports.plots import STYLE as PLOTS

STYLE = (
    PLOTS
    + """
:root { --ground: #f5f6f8; --raised: #ffffff; --tint: #f0f3f7; --accent: var(--s1);
  --good: var(--s3); --doubtful: var(--s5); --bad: var(--s2); --shade: rgb(20 30 50 / 7%);
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1015; --raised: #14181f;
  --tint: #1b212b; --shade: rgb(0 0 0 / 40%); } }
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth;
  scroll-padding-top: 1rem; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font-family: var(--sans); font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
.shell { max-width: 82rem; margin: 0 auto; padding: 0 1rem 4rem; }
header { padding: 2.5rem 0 1.25rem; }
h1 { margin: 0; font-size: clamp(1.6rem, 1.2rem + 2vw, 2.5rem); line-height: 1.15;
  letter-spacing: -0.02em; text-wrap: balance; }
header p { margin: .6rem 0 0; color: var(--soft); }
h2 { margin: 0 0 .5rem; font-size: 1.35rem; line-height: 1.25; letter-spacing: -0.01em; }
h3 { margin: 1.75rem 0 .6rem; font-size: 1rem; line-height: 1.35; }
h2 a { color: inherit; text-decoration: none; }
h2 a:hover::after, h2 a:focus-visible::after { content: " #"; color: var(--soft); }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
section { margin-top: 3rem; }
.lead { margin: 0 0 .75rem; max-width: 46rem; color: var(--soft); }
nav ol { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0; padding: 0; list-style: none; }
nav a { display: block; padding: .3rem .75rem; border: 1px solid var(--line); border-radius: 99px;
  background: var(--raised); color: var(--ink); font-size: .875rem; text-decoration: none; }
nav a:hover { border-color: var(--accent); color: var(--accent); }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: 1rem; padding: .5rem 1rem; background: var(--raised); z-index: 9; }

.cards { display: grid; gap: 1rem; margin-top: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.card { padding: 1.1rem 1.25rem 1.2rem; border: 1px solid var(--line); border-radius: 14px;
  background: var(--raised); box-shadow: 0 1px 3px var(--shade); border-top: 3px solid
  var(--doubtful); }
.card.is-clear { border-top-color: var(--good); }
.card h3 { margin: 0 0 .9rem; font-size: 1.05rem; }
.choices { display: grid; gap: 0 1.25rem; margin: 0 0 1rem;
  grid-template-columns: repeat(3, minmax(0, 1fr)); }
.choices div { display: grid; grid-row: span 5; grid-template-rows: subgrid; row-gap: .1rem;
  min-width: 0; }
.choices dt { font-size: .75rem; color: var(--soft); }
.choices dd { margin: 0; }
.choices .who { font-weight: 600; line-height: 1.3; }
.choices .figure { margin-top: .15rem; font-size: 1.45rem; font-weight: 650; line-height: 1.2;
  letter-spacing: -0.02em; }
.choices .below { font-size: .8rem; color: var(--soft); }
summary .pill { margin-left: .4rem; font-weight: 400; }
.pill { padding: 0 .4rem; border-radius: 99px; font-size: .7rem;
  border: 1px solid currentcolor; white-space: nowrap; }
.pill.good { color: var(--good); } .pill.doubtful { color: var(--doubtful); }
.card p { margin: 0 0 .5rem; }
.card ul { margin: .5rem 0 0; padding-left: 1.1rem; font-size: .875rem; color: var(--soft); }

.plots { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; padding: .9rem; border: 1px solid var(--line); border-radius: 14px;
  background: var(--paper); box-shadow: 0 1px 3px var(--shade); overflow-x: auto; }
figure.wide { grid-column: 1 / -1; }
figure svg { display: block; margin: 0 auto; }
figcaption { margin-bottom: .5rem; font-size: .875rem; color: var(--soft); }

.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 12px;
  background: var(--raised); box-shadow: 0 1px 3px var(--shade);
  -webkit-overflow-scrolling: touch; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem;
  line-height: 1.35; }
th, td { padding: .5rem .75rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--soft); font-size: .8rem; vertical-align: bottom;
  background: var(--tint); white-space: normal; min-width: 5.2rem; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 9rem; max-width: 24rem; }
th:first-child { position: sticky; left: 0; z-index: 1; text-align: left; min-width: 7.5rem;
  max-width: 13rem; background: var(--raised); font-weight: 600; white-space: normal;
  border-right: 1px solid var(--line); }
thead th:first-child { background: var(--tint); }
td small, th small { display: block; font-size: .75rem; font-weight: 400; color: var(--soft); }
tr.baseline > * { background: var(--tint); }
tr.paper > * { color: var(--soft); font-style: italic; font-weight: 400; }
.good { color: var(--good); } .doubtful { color: var(--doubtful); } .bad { color: var(--bad); }
td.good small, td.doubtful small, td.bad small { color: inherit; }
td.good::before { content: "\\25B2\\00A0"; font-size: .6em; vertical-align: .2em; }
td.bad::before { content: "\\25BC\\00A0"; font-size: .6em; vertical-align: .2em; }
td.doubtful::before { content: "~\\00A0"; }
.notes { margin: .6rem 0 0; padding-left: 1.1rem; font-size: .8125rem; color: var(--soft);
  max-width: 60rem; }
.legend { font-size: .8125rem; color: var(--soft); margin: .6rem 0 0; }

details { margin-top: .5rem; border: 1px solid var(--line); border-radius: 10px;
  background: var(--raised); }
summary { padding: .6rem .9rem; cursor: pointer; font-weight: 600; }
details[open] > summary { border-bottom: 1px solid var(--line); }
details .inside { padding: .75rem .9rem 1rem; }
details dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr;
  gap: .25rem 1rem; margin: 0; font-size: .875rem; }
details dt { color: var(--soft); }
details dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
pre { margin: 0; overflow-x: auto; font-size: .8125rem; }
.warnings { margin: 0 0 .9rem; padding-left: 1.1rem; font-size: .875rem; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line);
  font-size: .8125rem; color: var(--soft); }

@media (min-width: 1100px) {
  .frame { display: grid; grid-template-columns: 13rem minmax(0, 1fr); gap: 2.5rem; }
  nav { position: sticky; top: 1.5rem; align-self: start; margin-top: .3rem; }
  nav ol { flex-direction: column; gap: .1rem; }
  nav a { border-color: transparent; background: none; border-radius: 8px; color: var(--soft); }
  nav a:hover { border-color: transparent; background: var(--tint); color: var(--ink); }
  main > section:first-child { margin-top: 0; }
}
@media (max-width: 1099px) { main > section:first-child { margin-top: 1.75rem; } }
@media (max-width: 480px) { .choices { grid-template-columns: 1fr; }
  .choices div { display: grid; grid-row: auto; grid-template: "what pill" "who figure" "who below"
    / 1fr auto; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .choices dt { grid-area: what; } .choices .who { grid-area: who; }
  .choices .figure { grid-area: figure; text-align: right; font-size: 1.2rem; }
  .choices .below { grid-area: below; text-align: right; }
  .choices dd:last-child { grid-area: pill; text-align: right; }
  .card, figure { padding: .85rem; border-radius: 12px; }
  th, td { padding: .45rem .6rem; } th:first-child { max-width: 9rem; min-width: 6.5rem; } }
@media print { body { background: #fff; } nav, .skip { display: none; }
  .shell { max-width: none; padding: 0; } .scroll { overflow: visible; }
  .card, figure, tr { break-inside: avoid; box-shadow: none; }
  th, td { white-space: normal; padding: .25rem .4rem; font-size: .7rem; }
  h2, h3 { break-after: avoid; } }
"""
)

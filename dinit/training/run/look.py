"""Style and script of a run's health page."""

STYLE = """
:root{--paper:#fff;--card:#f6f7f9;--ink:#1b1f24;--soft:#59636e;--rule:#dfe3e8;--accent:#0b63c5;
--good:#1a7f37;--bad:#b3261e;--warn-paper:#fff4d6;--warn-ink:#5c4400;
--line-0:#0b63c5;--line-1:#3f2a86;--line-2:#2f4aa8;--line-3:#1e6fb8;--line-4:#0f8f9c;--line-5:#2a9d5c;--line-6:#7a9a12;
--line-7:#c98a00;--line-8:#c2500a}
@media (prefers-color-scheme:dark){:root{--paper:#12161b;--card:#1b2128;--ink:#e6eaf0;--soft:#a2adba;--rule:#303842;
--accent:#6cb2ff;--good:#57c97a;--bad:#ff8a80;--warn-paper:#3a2f10;--warn-ink:#ffe2a0;
--line-0:#6cb2ff;--line-1:#a08cf5;--line-2:#7d9bff;--line-3:#55b4f5;--line-4:#3fd0d6;--line-5:#5fd48c;--line-6:#b6d34a;
--line-7:#f3bd4a;--line-8:#ff9457}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#ccc}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink);
background:var(--paper);max-width:1240px;margin:0 auto;padding:20px 24px 32px}
h1{font-size:1.6rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:0 0 6px}h2 small{font-weight:400;color:var(--soft);margin-left:.4em}
p{margin:0}.about{color:var(--soft);margin:4px 0 12px;overflow-wrap:anywhere}
.state{font-size:.85rem;font-weight:600;border-radius:99px;padding:3px 12px;margin-left:6px;vertical-align:middle;
background:var(--card);color:var(--soft);border:1px solid var(--rule);display:inline-block}
.state.running{color:var(--accent);border-color:currentColor}.state.finished{color:var(--good);border-color:currentColor}
.state.diverged,.state.failed{color:var(--bad);border-color:currentColor}
.count{font-weight:600;font-variant-numeric:tabular-nums}
progress{appearance:none;width:100%;height:10px;border:0;border-radius:5px;overflow:hidden;background:var(--rule);
display:block;margin:6px 0 14px}
progress::-webkit-progress-bar{background:var(--rule)}progress::-webkit-progress-value{background:var(--accent)}
progress::-moz-progress-bar{background:var(--accent)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin:0 0 18px}
.tiles div{background:var(--card);border-radius:8px;padding:8px 12px}
dt{color:var(--soft);font-size:.8rem}dd{margin:0;font-size:1.2rem;font-weight:600;font-variant-numeric:tabular-nums}
.problems{background:var(--warn-paper);color:var(--warn-ink);border-radius:8px;margin:0 0 18px;
padding:10px 14px 10px 32px;overflow-wrap:anywhere}
.top{display:grid;grid-template-columns:minmax(0,7fr) minmax(0,5fr);gap:28px;align-items:start}
.charts{display:grid;gap:22px}
.more{grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:22px 28px}
figure{margin:0}
.chart svg{display:block;width:100%;height:auto;font-family:inherit;overflow:visible}
.chart svg *{stroke-linejoin:round}
.note{font-size:.85rem;color:var(--soft);margin-top:6px}.note b{color:var(--ink);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.8rem;color:var(--soft);margin-bottom:4px}
.legend i{display:inline-block;width:18px;height:0;border-top:3px solid var(--key,var(--soft));
vertical-align:middle;margin-right:5px}
.legend i.faint{border-top-width:1.5px;opacity:.55}.legend i.dashed{border-top-style:dashed}
.legend i.mark{border-top:0;border-left:2px dotted var(--soft);width:2px;height:12px}
img{display:block;width:100%;height:auto;background:#fff;border-radius:4px}
.newest{position:sticky;top:16px}
section+section,section,details{min-width:0}
body>section,details{margin-top:30px}
.earlier{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:14px}
figcaption{font-size:.85rem;color:var(--soft)}
.table{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:4px 14px 4px 0;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:500}
summary{cursor:pointer;font-weight:600}
footer{margin-top:30px;color:var(--soft);font-size:.8rem}
#late{position:fixed;left:0;right:0;bottom:0;padding:10px 24px;background:var(--warn-paper);color:var(--warn-ink)}
#late[hidden]{display:none}
@media (max-width:820px){body{padding:14px 14px 24px}.top{grid-template-columns:minmax(0,1fr)}
.newest{position:static}.earlier{grid-template-columns:repeat(auto-fill,minmax(130px,1fr))}}
@media print{body{max-width:none;padding:0}.top{display:block}.newest{position:static;max-width:70%}
.charts{grid-template-columns:1fr 1fr}.chart,.earlier figure{break-inside:avoid}
#late,details:not([open]){display:none}}
""".strip()

SCRIPT = """
(function () {
  var data = document.currentScript.dataset;
  var late = document.getElementById("late"), table = document.getElementById("numbers");
  try {
    if (table && sessionStorage.getItem("numbers")) table.open = true;
    if (table) table.addEventListener("toggle", function () {
      if (table.open) sessionStorage.setItem("numbers", "1"); else sessionStorage.removeItem("numbers");
    });
  } catch (error) { /* storage is switched off: the table closes at every reload */ }
  function age() { return Date.now() / 1000 - data.written; }
  function look() {
    if (age() > data.late) {
      late.hidden = false;
      late.textContent = "Nothing was written for " + Math.round(age() / 60) + " minutes. "
        + "If the process has ended, the same command continues the run.";
    }
    if (age() > 3600) return;
    var wait = age() > data.late ? 120000 : 20000;
    setTimeout(function () { if (document.hidden) look(); else location.reload(); }, wait);
  }
  look();
})();
""".strip()

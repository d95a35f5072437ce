// Tabs, filters and the one function that brings everything up to date with the state.
function drawTabs() {
  const host = byId("tabs");
  if (!host.childElementCount) {
    host.append(...DATA.datasets.map(({ name, title: text }) => {
      const count = entries(name, "means").filter(({ printed: theirs }) => !theirs).length;
      return el("button", { type: "button", role: "tab", id: `tab-${name}`, "data-name": name, "aria-controls": "panel", onclick: () => changeData(name) },
        text, el("span", { class: "count" }, ` ${count} measured`));
    }));
  }
  for (const tab of host.children) {
    const chosen = tab.dataset.name === state.data;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) byId("panel").setAttribute("aria-labelledby", tab.id);
  }
}

function changeData(name) {
  all = false;
  Object.assign(state, { data: name, method: "", arch: "", T: "", sort: "", dir: "asc", open: "", picked: [] });
  update();
}

function changeValues(values) {
  Object.assign(state, { values, picked: [], open: "" });
}

function choice(name, label, options) {
  const change = (event) => {
    if (name === "values") changeValues(event.target.value);
    else state[name] = event.target.value;
    if (name === "T") state.sort = "";
    update();
  };
  const select = el("select", { id: `by-${name}`, onchange: change }, ...options.map(([value, text]) => el("option", { value }, text)));
  select.value = state[name];
  if (select.selectedIndex < 0) state[name] = select.value = options[0][0];
  return el("label", {}, el("span", {}, label), select);
}

let filtered = "";
function drawFilters() {
  const lines = entries(state.data, state.values);
  if (filtered !== state.data) {
    filtered = state.data;
    const names = (get, label = (name) => name) => [...new Set(lines.map(get))].map((name) => [name, label(name)])
      .sort(([, a], [, b]) => (a.toLowerCase() < b.toLowerCase() ? -1 : 1));
    const Ts = [...new Set(lines.flatMap((entry) => [...entry.cells.keys()]))].sort((a, b) => steps(a) - steps(b) || a.length - b.length);
    byId("filters").replaceChildren(
      choice("method", "Method", [["", "all methods"], ...names(({ method }) => method, named)]),
      choice("arch", "Net", [["", "all nets"], ...names(({ arch }) => arch)]),
      choice("T", "T", [["", "all T"], ...Ts.map((T) => [T, `T = ${T}`])]),
      choice("show", "Numbers", [["all", "measured and printed"], ["measured", "measured"], ["printed", "printed"]]),
      choice("values", "Values", [["means", "means"], ["seeds", "single seeds"]]),
      el("button", { type: "button", id: "reset", onclick: () => { Object.assign(state, DEFAULTS, { data: state.data, picked: [] }); update(); } }, "Reset"));
  }
  for (const name of ["method", "arch", "T", "show", "values"]) byId(`by-${name}`).value = state[name];
}

function sortBy(id, number) {
  if (state.sort === id) state.dir = state.dir === "asc" ? "desc" : "asc";
  // Accuracies sort best first; names and ranks sort in ascending order.
  else Object.assign(state, { sort: id, dir: number && !["rank", "n", "warmup", "latency", "synops", "rate", "more"].includes(id) ? "desc" : "asc" });
  update();
  const { head } = columns(shown()).find((column) => column.id === id);
  byId("live").textContent = `Sorted by ${head}, ${state.dir === "asc" ? "ascending" : "descending"}.`;
}

function togglePick(key) {
  state.picked = state.picked.includes(key) ? state.picked.filter((other) => other !== key) : [...state.picked, key];
  update();
}

function update() {
  drawTabs();
  drawFilters();
  const lines = shown();
  drawTable(lines, drawPlots(lines));
  drawDetail();
  writeAddress();
}

function theme(chosen) {
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (chosen) document.documentElement.dataset.theme = chosen;
  byId("theme").setAttribute("aria-pressed", String(dark));
  return dark;
}

byId("theme").addEventListener("click", () => {
  const next = byId("theme").getAttribute("aria-pressed") === "true" ? "light" : "dark";
  theme(next);
  // Some browsers refuse storage to pages on disk.
  try { localStorage.setItem("theme", next); } catch { /* chosen for this visit only */ }
});
byId("tabs").addEventListener("keydown", (event) => {
  const tabs = [...byId("tabs").children];
  const now = tabs.findIndex((tab) => tab.dataset.name === state.data);
  const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const tab = tabs[(next + tabs.length) % tabs.length];
  changeData(tab.dataset.name);
  tab.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.open) closeDetail();
});
byId("more").addEventListener("click", () => {
  all = true;
  update();
  byId("scroll").focus();
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  filtered = "";
  readAddress();
  update();
});
let kept = null;
try { kept = localStorage.getItem("theme"); } catch { /* as above */ }
theme(["light", "dark"].includes(kept) ? kept : null);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (!document.documentElement.dataset.theme) theme(null); });
listen(byId("curve"));
listen(byId("pareto"));
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  drawPlots(shown());
});
readAddress();
update();

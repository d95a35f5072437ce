// The table: columns follow the filters; rows are made once and put in another order when sorted.
function columns(lines) {
  const names = [
    { id: "method", head: "method", value: (entry) => named(entry.method), show: nameCell, row: true },
    { id: "arch", head: "net", value: (entry) => entry.arch, show: (entry) => entry.arch },
    { id: "source", head: "recipe or source", value: (entry) => entry.source, show: sourceCell },
    { id: "rank", head: "rank", value: (entry) => (entry.rank === null ? null : 1000 * entry.row.standing + entry.rank), show: (entry) => entry.rank ?? (entry.printed ? "" : "–"), number: true },
    { id: "n", head: state.values === "seeds" ? "seed" : "n", value: (entry) => entry.n, show: (entry) => entry.n ?? "", number: true },
    { id: "ann", head: "ANN", value: (entry) => entry.ann, show: annCell, number: true },
  ];
  const at = (T) => ({ id: `T${T}`, head: `T = ${T}`, value: (entry) => entry.cells.get(T)?.value, show: (entry) => topCell(entry, T), number: true });
  if (state.T) return [...names, at(state.T), ...costs(state.T)];
  const present = new Set(lines.flatMap((entry) => [...entry.cells.keys()]));
  const others = [...present].filter((T) => !COMMON.includes(T));
  const rest = (entry) => [...entry.cells].filter(([T]) => !COMMON.includes(T));
  const more = { id: "more", head: "other T", value: (entry) => (rest(entry).length ? steps(rest(entry).at(-1)[0]) : null), number: true,
    show: (entry) => rest(entry).map(([T, cell]) => el("span", { class: "pair" }, `${T}: ${cell.text ?? two(cell.value)}`, fewer(cell.n, entry.n))) };
  return [...names, ...COMMON.filter((T) => present.has(T)).map(at), ...(others.length ? [more] : [])];
}

function costs(T) {
  const cell = (entry) => entry.cells.get(T) ?? {};
  return [
    { id: "difference", head: "ours − paper", value: (entry) => cell(entry).difference, show: (entry) => difference(cell(entry)), number: true },
    { id: "badge", head: "badge", value: (entry) => cell(entry).badge, show: (entry) => cell(entry).badge ?? "" },
    { id: "warmup", head: "warm-up", value: (entry) => cell(entry).warmup, show: (entry) => cell(entry).warmup ?? "", number: true },
    { id: "latency", head: "latency", value: (entry) => cell(entry).latency, show: (entry) => cell(entry).latency ?? "", number: true },
    { id: "rate", head: "firing rate", value: (entry) => cell(entry).rate, show: (entry) => cell(entry).rate?.toFixed(4) ?? "", number: true },
    { id: "synops", head: "SynOps", value: (entry) => cell(entry).synops, show: (entry) => (Number.isFinite(cell(entry).synops) ? compact(cell(entry).synops) : entry.printed ? "" : "not measured"), number: true },
  ];
}

// Coloured, and with a sign for readers who do not see the colour.
function difference(cell) {
  if (cell.difference === undefined) return null;
  const kind = cell.badge === "matches" ? "same" : cell.difference < 0 ? "below" : "above";
  return el("span", { class: `difference ${kind}`, title: `${cell.by} has ${cell.paper}${cell.remark ? `; ${cell.remark}` : ""}` }, { same: "= ", below: "▼ ", above: "▲ " }[kind] + signed(cell.difference));
}

// Shows the number of seeds if a mean is over fewer seeds than the row has.
function fewer(n, seeds) {
  return state.values === "means" && n !== undefined && n !== seeds ? el("span", { class: "std" }, ` (n=${n})`) : null;
}

function topCell(entry, T) {
  const cell = entry.cells.get(T);
  if (!cell) return null;
  return [el("span", { class: "top1" }, cell.text ?? two(cell.value)), cell.std ? el("span", { class: "std" }, ` ± ${two(cell.std)}`) : null, fewer(cell.n, entry.n), state.T ? null : difference(cell)];
}

// "SNNC-AP (ICML 2021)" may break before its bracket, never inside a name; long venues may break between words.
function unbroken(name) {
  const [, first, rest] = name.match(/^(.{1,24}?)( \(.*\))?$/) ?? [null, null, name];
  const part = (text) => (text.length > 24 ? text : el("span", { class: "name" }, text));
  return first ? [part(first), ...(rest ? [" ", part(rest.trim())] : [])] : [rest];
}

// A recipe with its changes may break before each of them.
const breakable = (recipe) => recipe.split(/(?=\+)/).flatMap((part, k) => (k ? [el("wbr"), part] : [part]));

// The table that a row is ranked in comes first, unless a mark says it.
function marksOf(row) {
  const standing = DATA.standings[row.standing];
  return row.marks.some((mark) => mark.startsWith(standing)) ? row.marks : [standing, ...row.marks];
}

function nameCell(entry) {
  const name = el("button", { type: "button", class: "open", "aria-haspopup": "dialog", onclick: () => openDetail(entry.key) }, ...unbroken(named(entry.method)));
  const as = entry.printed && !named(entry.method).startsWith(entry.row.as) ? el("span", { class: "mark" }, entry.row.as) : null;
  return [name, as, ...(entry.printed ? [] : marksOf(entry.row).map((text) => el("span", { class: "mark" }, text)))];
}

function sourceCell(entry) {
  if (!entry.printed) return breakable(entry.source);
  return [entry.source, el("span", { class: "mark" }, entry.row.kind + (entry.row.L === null ? "" : `, L = ${entry.row.L}`))];
}

// Accuracy of the classifier that the paper prints as its ANN, if that is another one.
function reference(row, run) {
  const value = run ? run.reference : row.reference;
  return value === undefined ? "" : `${row.called}: ${run ? two(value) : spread(value)}`;
}

function annCell(entry) {
  if (entry.ann === null) return "";
  const std = !entry.printed && !entry.run ? entry.row.ann[1] : null;
  const other = entry.printed ? "" : reference(entry.row, entry.run);
  return [el("span", {}, entry.printed ? entry.row.ann : two(entry.ann)), std ? el("span", { class: "std" }, ` ± ${two(std)}`) : null, other ? el("span", { class: "mark" }, other) : null];
}

// Further rows are drawn on demand, so that sorting stays fast.
const ENOUGH = 200;
let all = false;
const drawn = new Map();
let signature = "";

function tableRow(entry, shape) {
  if (drawn.has(entry.key)) return drawn.get(entry.key);
  const pick = el("input", { type: "checkbox", "aria-label": `plot ${title(entry)}`, onchange: () => togglePick(entry.key) });
  const cells = shape.map(({ show, number, row }) => el(row ? "th" : "td", { class: number ? "number" : null, scope: row ? "row" : null }, show(entry)));
  const line = el("tr", { class: entry.printed ? "printed" : "measured" }, el("td", { class: "pick" }, el("i", { class: "swatch" }), pick), ...cells);
  drawn.set(entry.key, line);
  return line;
}

function drawTable(lines, inks) {
  const table = byId("table");
  const shape = columns(lines);
  const now = [state.data, state.values, state.T, state.arch, ...shape.map(({ id }) => id)].join("\n");
  if (now !== signature) {
    drawn.clear();
    signature = now;
    const heads = shape.map(({ id, head, number }) =>
      el("th", { scope: "col", class: number ? "number" : null, "data-column": id },
        el("button", { type: "button", onclick: () => sortBy(id, number) }, head, el("i", { class: "arrow", "aria-hidden": "true" }))));
    table.tHead.replaceChildren(el("tr", {}, el("th", { scope: "col", class: "pick" }, el("span", { class: "unseen" }, "plot")), ...heads));
  }
  for (const head of table.tHead.querySelectorAll("[data-column]")) {
    const sorted = head.dataset.column === state.sort;
    if (sorted) head.setAttribute("aria-sort", state.dir === "asc" ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  const body = document.createDocumentFragment();
  // A row that moves loses the focus.
  const focused = document.activeElement;
  for (const entry of all ? lines : lines.slice(0, ENOUGH)) {
    const line = tableRow(entry, shape);
    const ink = inks.get(entry.key);
    line.firstChild.firstChild.className = ink === undefined ? "swatch" : `swatch on back${ink % 8}`;
    line.querySelector("input").checked = state.picked.includes(entry.key);
    line.classList.toggle("opened", entry.key === state.open);
    body.append(line);
  }
  if (!lines.length) body.append(el("tr", {}, el("td", { colspan: shape.length + 1, class: "empty" }, "No rows match these filters.")));
  table.tBodies[0].replaceChildren(body);
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  byId("more").hidden = all || lines.length <= ENOUGH;
  byId("more").textContent = `Show all ${lines.length} rows`;
  const [ours, theirs] = [lines.filter(({ printed }) => !printed).length, lines.filter(({ printed }) => printed).length];
  const noun = state.values === "seeds" ? "measured run" : "measured row";
  byId("caption").textContent = `${titleOf(state.data)}: ${many(ours, noun)}, ${many(theirs, "printed row")}. Top-1 in percent${state.values === "means" ? ", mean ± standard deviation over n seeds" : ""}.`;
}

const titleOf = (name) => DATA.datasets.find((dataset) => dataset.name === name)?.title ?? name;

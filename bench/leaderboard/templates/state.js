// The state, kept in the address so that a link restores it; and making elements, from text, never from markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const MOST = 6;
const COMMON = ["1", "2", "4", "8", "16", "32", "64"];
const DEFAULTS = { data: "", method: "", arch: "", T: "", show: "all", values: "means", sort: "", dir: "asc", open: "" };
const state = { ...DEFAULTS, picked: [] };
const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== "") node.append(child);
  }
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const said = (number) => DATA.texts[number];
// A method's display name; a method that is not registered here keeps the name from its paper.
const named = (method) => (Object.hasOwn(DATA.methods, method) ? DATA.methods[method] : method);
const two = (value) => value.toFixed(2);
const spread = ([mean, std]) => two(mean) + (std === null ? "" : ` ± ${two(std)}`);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
const steps = (T) => parseInt(T, 10);
const latency = (cell) => cell.T + cell.warmup + (cell.wait ?? 0);
const many = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const compact = (n) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(n);

// Where a printed number stands that a cell is compared with.
const printedIn = (cell) => (cell.where === undefined ? "" : `${said(cell.where)} (${said(cell.kind)})`);

// One line of the table: a measured row, one of its seeds, or a printed row.
function measured(row, run) {
  const cells = new Map();
  for (const cell of row.cells) {
    const point = run ? run.points.find(([T, warmup]) => T === cell.T && warmup === cell.warmup) : null;
    if ((run && !point) || cells.has(String(cell.T))) continue;
    const value = run ? point[2] : cell.top1[0];
    const off = cell.paper === undefined ? undefined : run ? Math.round(100 * (point[2] - cell.paper)) / 100 : cell.difference;
    cells.set(String(cell.T), {
      value, std: run ? null : cell.top1[1], n: run ? 1 : cell.top1[2], warmup: cell.warmup, latency: latency(cell), paper: cell.paper,
      difference: off, badge: run && off !== undefined ? (Math.abs(off) <= Number(DATA.tolerance) ? "matches" : "differs") : said(cell.badge),
      rate: run ? undefined : cell.rate, synops: run ? point[3] : cell.synops, remark: cell.remark === undefined ? "" : said(cell.remark),
      by: printedIn(cell),
    });
  }
  const source = row.L === null ? row.recipe : `${row.recipe}, L = ${row.L}`;
  return {
    key: run ? `${row.key}#${run.seed}` : row.key, row, run, printed: false, rank: row.rank, method: row.method,
    arch: row.arch, source, n: run ? run.seed : row.runs.length, ann: run ? run.ann : row.ann[0], cells,
  };
}

function printed(row) {
  const cells = new Map(row.top1.map(([T, text]) => [T, { value: Number(text), text, warmup: row.warmup }]));
  return {
    key: row.key, row, run: null, printed: true, rank: null, method: row.method, arch: row.arch,
    source: row.who || row.paper, n: null, ann: row.ann === null ? null : Number(row.ann), cells,
  };
}

const made = new Map();
function entries(dataset, values) {
  const name = `${dataset} ${values}`;
  if (!made.has(name)) {
    const ours = DATA.rows.filter((row) => row.dataset === dataset);
    const lines = values === "seeds" ? ours.flatMap((row) => row.runs.map((run) => measured(row, run))) : ours.map((row) => measured(row));
    made.set(name, [...lines, ...DATA.printed.filter((row) => row.dataset === dataset).map(printed)]);
  }
  return made.get(name);
}

function shown() {
  const lines = entries(state.data, state.values).filter((entry) =>
    (!state.method || entry.method === state.method) && (!state.arch || entry.arch === state.arch) &&
    (!state.T || entry.cells.has(state.T)) && (state.show === "all" || (state.show === "printed") === entry.printed));
  const column = columns(lines).find(({ id }) => id === state.sort);
  if (!column) return lines;
  const sign = state.dir === "asc" ? 1 : -1;
  return lines.map((entry) => [column.value(entry), entry]).sort(([a], [b]) => {
    const [noA, noB] = [a === null || a === undefined, b === null || b === undefined];
    if (noA || noB) return noA - noB;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { sensitivity: "base" }));
  }).map(([, entry]) => entry);
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(DEFAULTS)) state[name] = given.get(name) ?? DEFAULTS[name];
  const names = DATA.datasets.map(({ name }) => name);
  if (!names.includes(state.data)) state.data = DATA.rows.length ? DATA.rows[0].dataset : names[0] ?? "";
  if (!["all", "measured", "printed"].includes(state.show)) state.show = "all";
  if (!["means", "seeds"].includes(state.values)) state.values = "means";
  if (state.dir !== "desc") state.dir = "asc";
  const known = new Set(entries(state.data, state.values).map(({ key }) => key));
  state.picked = given.getAll("pick").filter((key) => known.has(key));
  if (!known.has(state.open)) state.open = "";
}

function writeAddress() {
  const out = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (state[name] !== value) out.set(name, state[name]);
  }
  for (const key of state.picked) out.append("pick", key);
  history.replaceState(null, "", `#${out}`);
}

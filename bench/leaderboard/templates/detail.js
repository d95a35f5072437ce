// Everything known about one row, and the command that repeats it.
function facts(pairs) {
  return el("dl", {}, ...pairs.filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function simpleTable(caption, head, lines) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col", class: "number" }, name)))),
      el("tbody", {}, ...lines.map((line) => el("tr", {}, ...line.map((value) => el("td", { class: "number" }, value ?? "")))))));
}

function command(run) {
  const text = `git checkout ${said(run.commit)}${run.trained === run.commit ? "" : `  # trained at ${said(run.trained)}`}\n${said(run.command)}`;
  const code = el("code", {}, text);
  const copy = el("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = "selected";
    }
    byId("live").textContent = `Command ${copy.textContent}.`;
  } }, "copy");
  return el("div", { class: "command" }, el("pre", { tabindex: "0", role: "region", "aria-label": `command of seed ${run.seed}` }, code), copy);
}

function runDetail(row, run, open) {
  const file = el("a", { href: `results/${[row.dataset, row.arch, row.method, run.file].map(encodeURIComponent).join("/")}` }, "record");
  return el("details", { open }, el("summary", {}, `Seed ${run.seed}`, el("span", { class: "mark" }, `ANN ${two(run.ann)}`)), command(run),
    facts([["evaluated at commit", said(run.commit)], ["trained at commit", said(run.trained)],
      ["training", `${many(run.epochs, "epoch")}${run.hours === null ? "" : `, ${run.hours} h`}`], ["run", `${run.started}, ${run.seconds} s`],
      ["device", said(run.device)], ["versions", said(run.versions)], ["weights, SHA-256", run.weights], ["source net, SHA-256", run.source], ["everything else", file]]));
}

function paperLine(key) {
  const paper = Object.hasOwn(DATA.papers, key) ? DATA.papers[key] : null;
  const file = el("a", { href: `reported/${encodeURIComponent(key)}.yaml` }, key);
  if (!paper) return key;
  if (paper.title === null && !paper.url && !paper.venue) return file;
  const name = paper.title ?? "(title not seen)";
  return el("span", {}, paper.url ? el("a", { href: paper.url, rel: "noreferrer" }, name) : name, paper.venue ? `, ${paper.venue}` : "", " (", file, ")");
}

// Columns without any value are left out; one sentence says if costs were not measured.
function cellTable(row) {
  const all = [
    ["T", (cell) => cell.T], ["warm-up", (cell) => cell.warmup], ["latency", latency],
    ["top-1", (cell) => spread(cell.top1) + (cell.top1[2] === row.runs.length ? "" : ` (n=${cell.top1[2]})`)],
    ["paper", (cell) => cell.paper ?? null], ["ours − paper", (cell) => difference({ ...cell, badge: said(cell.badge), remark: cell.remark === undefined ? "" : said(cell.remark), by: printedIn(cell) })], ["twin", (cell) => (cell.twin === null ? null : two(cell.twin))],
    ["firing rate", (cell) => cell.rate.toFixed(4)], ["SynOps", (cell) => (cell.synops === null ? null : compact(cell.synops))],
    ["energy (mJ)", (cell) => (cell.mJ === null ? null : String(cell.mJ))],
  ];
  const used = all.filter(([, show]) => row.cells.some((cell) => show(cell) !== null));
  const table = simpleTable("Accuracy and cost at each T, over the seeds", used.map(([name]) => name), row.cells.map((cell) => used.map(([, show]) => show(cell))));
  return used.some(([name]) => name === "SynOps") ? table : [table, el("p", { class: "quiet" }, "Synaptic operations and energy have not been measured.")];
}

function measuredDetail({ row, run }) {
  return [
    facts([["paper", paperLine(row.paper)], ["option", `--method ${row.method}`], ["recipe", row.recipe], ["L", row.L === null ? null : String(row.L)],
      ["ANN", [spread(row.ann), reference(row)].filter(Boolean).join("; ")],
      ["rank", row.rank === null ? null : `${row.rank} of the ${DATA.standings[row.standing]}`], ["notes", row.marks.join("; ")]]),
    cellTable(row),
    ...[...new Set(row.cells.filter(({ paper }) => paper !== undefined).map((cell) => [`Compared with ${printedIn(cell)}`, said(cell.remark)].filter(Boolean).join(": ")))].map((text) => el("p", { class: "quiet" }, text + ".")),
    el("h3", {}, "Repeat this result"), ...row.runs.map((one, index) => runDetail(row, one, run ? one === run : index === 0)),
    el("h3", {}, "Conversion and measurement"), facts(row.facts.map((pair) => pair.map(said))),
  ];
}

function printedDetail({ row }) {
  return [
    facts([[row.who ? "file" : "paper", paperLine(row.paper)], ["printed as", row.as], ["measured by", row.who], ["kind", row.kind], ["where", row.where],
      ["L", row.L === null ? "not stated" : String(row.L)], ["warm-up", row.warmup ? many(row.warmup, "step") : null],
      ["net", row.same ? `${row.arch}, a net of this suite` : row.arch], ["ANN", row.ann], ["note", row.note]]),
    simpleTable("As printed", ["T", "top-1"], row.top1),
  ];
}

let opener = null;
function openDetail(key) {
  opener = document.activeElement;
  state.open = key;
  update();
  byId("detail").focus();
}

function closeDetail() {
  state.open = "";
  update();
  if (opener?.isConnected) opener.focus();
  else byId("scroll").focus();
}

let detailed = "";
function drawDetail() {
  const aside = byId("detail");
  const entry = entries(state.data, state.values).find(({ key }) => key === state.open);
  aside.hidden = !entry;
  document.body.classList.toggle("with-detail", Boolean(entry));
  // If it covers the page, nothing below can be reached.
  const covered = Boolean(entry) && matchMedia("(max-width: 640px)").matches;
  for (const below of [document.querySelector("header"), byId("tabs"), byId("panel")]) below.inert = covered;
  if (!entry || detailed === `${state.values} ${state.open}`) {
    if (!entry) detailed = "";
    return;
  }
  detailed = `${state.values} ${state.open}`;
  const close = el("button", { type: "button", class: "close", "aria-label": "Close", onclick: closeDetail }, "×");
  aside.replaceChildren(el("div", { class: "head" }, el("div", {}, el("h2", { id: "detail-title" }, named(entry.method)), el("p", {}, `${entry.arch}, ${titleOf(state.data)}, ${entry.printed ? "printed" : "measured here"}`)), close),
    ...(entry.printed ? printedDetail(entry) : measuredDetail(entry)).flat());
  aside.scrollTop = 0;
}

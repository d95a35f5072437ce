// Both plots, drawn at their size on the screen; pointer and arrow keys show values.
const SHAPES = ["circle", "square", "triangle", "diamond"];
const PATHS = { square: "M-4-4h8v8h-8z", triangle: "M0-5l5 9h-10z", diamond: "M0-5.5l5 5.5-5 5.5-5-5.5z" };

function mark(ink, x, y, hollow) {
  // When the colours repeat, the shape changes, so that 32 series differ.
  const shape = SHAPES[(ink + Math.floor(ink / 8)) % SHAPES.length];
  const style = { class: `${hollow ? "hollow" : "full"} ink${ink % 8}` };
  return shape === "circle" ? svg("circle", { ...style, cx: x, cy: y, r: 4 }) : svg("path", { ...style, d: PATHS[shape], transform: `translate(${x} ${y})` });
}

// The picked rows, else the first rows of the table; measured before printed.
function plotted(lines) {
  if (state.picked.length) {
    const all = new Map(entries(state.data, state.values).map((entry) => [entry.key, entry]));
    return state.picked.map((key) => all.get(key)).filter(Boolean);
  }
  const ours = lines.filter((entry) => !entry.printed);
  return (ours.length ? ours : lines).slice(0, MOST);
}

const title = (entry, nets = !state.arch) => `${named(entry.method)}, ${entry.source}${entry.run ? `, seed ${entry.run.seed}` : ""}${nets ? `, ${entry.arch}` : ""}`;

function curvePoints(entry, ink) {
  const points = [];
  for (const [T, cell] of entry.cells) {
    // "512+" is not a single number of steps.
    if (T.endsWith("+")) continue;
    const std = cell.std ? ` ± ${two(cell.std)}` : "";
    points.push({ x: steps(T), y: cell.value, std: cell.std, hollow: entry.printed, ink,
      text: `${title(entry)}: ${cell.text ?? two(cell.value)}${std} % at T = ${T}${cell.warmup ? ` after ${cell.warmup} warm-up steps` : ""}` });
    if (cell.paper !== undefined) {
      points.push({ x: steps(T), y: Number(cell.paper), hollow: true, theirs: true, ink,
        text: `${named(entry.method)}, printed in ${cell.by}: ${cell.paper} % at T = ${T}; here ${signed(cell.difference)}` });
    }
  }
  return points;
}

function costPoints(entry, ink) {
  return [...entry.cells].filter(([, cell]) => cell.synops > 0).map(([T, cell]) => ({
    x: cell.synops, y: cell.value, std: cell.std, ink,
    text: `${title(entry)}: ${two(cell.value)} % with ${compact(cell.synops)} synaptic operations (T = ${T})` }));
}

function drawPlot(id, series, options) {
  const host = byId(id);
  const all = series.flatMap(({ points }) => points);
  if (!all.length) {
    host.replaceChildren(el("p", { class: "empty" }, options.empty));
    host.removeAttribute("tabindex");
    return;
  }
  host.setAttribute("tabindex", "0");
  const width = Math.max(280, host.clientWidth), height = Math.round(Math.min(340, Math.max(240, width * 0.56)));
  const [left, right, top, bottom] = [40, width - 14, 12, height - 40];
  const ys = [...all.map(({ y }) => y), ...series.map(({ ann }) => ann).filter((ann) => ann !== null && ann !== undefined)];
  const low = 5 * Math.floor(Math.min(...ys) / 5), high = Math.max(low + 5, Math.min(100, 5 * Math.ceil(Math.max(...ys) / 5)));
  const log = options.base === 2 ? Math.log2 : Math.log10;
  const first = Math.floor(log(Math.min(...all.map(({ x }) => x)))), last = Math.max(first + 1, Math.ceil(log(Math.max(...all.map(({ x }) => x)))));
  const X = (x) => left + ((right - left) * (log(x) - first)) / (last - first);
  const Y = (y) => bottom - ((bottom - top) * (y - low)) / (high - low);
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const gap = [1, 2, 5, 10, 20].find((step) => (high - low) / step <= 7);
  for (let value = Math.ceil(low / gap) * gap; value <= high; value += gap) {
    picture.append(svg("line", { class: "grid", x1: left, x2: right, y1: Y(value), y2: Y(value) }), svg("text", { x: left - 8, y: Y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  const name = options.base === 2 ? String : compact;
  for (let power = first; power <= last; power += (last - first) * 42 > right - left ? 2 : 1) {
    const at = X(options.base ** power);
    picture.append(svg("line", { class: "grid", x1: at, x2: at, y1: bottom, y2: bottom + 4 }), svg("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, name(options.base ** power)));
  }
  picture.append(svg("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, options.label));
  if (options.guide >= options.base ** first) picture.append(svg("line", { class: "guide", x1: X(options.guide), x2: X(options.guide), y1: top, y2: bottom }));
  for (const { points, ink, ann, hollow } of series) {
    if (ann !== null && ann !== undefined) picture.append(svg("line", { class: `ann ink${ink % 8}`, x1: left, x2: right, y1: Y(ann), y2: Y(ann) }));
    const line = points.filter(({ theirs }) => !theirs);
    if (line.length > 1) picture.append(svg("polyline", { class: `line ink${ink % 8}${hollow ? " thin" : ""}`, points: line.map(({ x, y }) => `${X(x)},${Y(y)}`).join(" ") }));
    for (const { x, y, std } of line) {
      if (std) picture.append(svg("line", { class: `bar ink${ink % 8}`, x1: X(x), x2: X(x), y1: Y(y - std), y2: Y(y + std) }));
    }
    for (const point of points) {
      point.at = [X(point.x), Y(point.y)];
      picture.append(mark(ink, ...point.at, point.hollow));
    }
  }
  if (options.front) {
    let best = -Infinity;
    const front = all.slice().sort((a, b) => a.x - b.x || b.y - a.y).filter(({ y }) => y > best && ((best = y), true));
    picture.append(svg("polyline", { class: "front", points: front.map(({ at }) => at.join()).join(" ") }));
  }
  const ring = svg("circle", { class: "ring", r: 8, visibility: "hidden" });
  picture.append(ring);
  host.replaceChildren(picture, el("div", { class: "tip", hidden: true }));
  host.plot = { series: series.filter(({ points }) => points.length), ring, place: null, width };
}

function point(host, chosen) {
  const tip = host.querySelector(".tip");
  if (!tip) return;
  tip.hidden = !chosen;
  host.plot.ring.setAttribute("visibility", chosen ? "visible" : "hidden");
  if (!chosen) return;
  const [x, y] = chosen.at;
  host.plot.ring.setAttribute("cx", x);
  host.plot.ring.setAttribute("cy", y);
  tip.textContent = chosen.text;
  tip.style.left = `${Math.min(Math.max(0, x - 110), Math.max(0, host.plot.width - 230))}px`;
  tip.style.top = `${y > 90 ? y - 14 : y + 14}px`;
  tip.classList.toggle("up", y > 90);
}

function listen(host) {
  host.addEventListener("pointermove", (event) => {
    if (!host.plot || !host.querySelector(".tip")) return;
    const box = host.getBoundingClientRect();
    const distance = ({ at }) => Math.hypot(at[0] - (event.clientX - box.left), at[1] - (event.clientY - box.top));
    const nearest = host.plot.series.flatMap(({ points }) => points).reduce((a, b) => (!a || distance(b) < distance(a) ? b : a), null);
    point(host, nearest && distance(nearest) < 32 ? nearest : null);
  });
  host.addEventListener("pointerleave", () => point(host, null));
  host.addEventListener("blur", () => point(host, null));
  host.addEventListener("keydown", (event) => {
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Escape") point(host, null);
    if (!move || !host.plot || !host.querySelector(".tip")) return;
    event.preventDefault();
    const { series, place } = host.plot;
    const s = place ? (place[0] + move[0] + series.length) % series.length : 0;
    const count = series[s].points.length;
    const p = place ? Math.min((place[1] + move[1] + count) % count, count - 1) : 0;
    host.plot.place = [s, p];
    point(host, series[s].points[p]);
    byId("live").textContent = series[s].points[p].text;
  });
}

function drawPlots(lines) {
  const chosen = plotted(lines);
  const curves = chosen.map((entry, ink) => ({ points: curvePoints(entry, ink), ink, ann: entry.printed ? null : entry.ann, hollow: entry.printed }));
  drawPlot("curve", curves, { base: 2, label: "T (time-steps)", guide: steps(state.T), empty: "No rows match these filters." });
  const costs = chosen.map((entry, ink) => ({ points: costPoints(entry, ink), ink }));
  drawPlot("pareto", costs, { base: 10, label: "synaptic operations for one image", front: true,
    empty: chosen.length ? "Synaptic operations have not been measured for these rows." : "No rows match these filters." });
  const nets = new Set(chosen.map(({ arch }) => arch));
  byId("curve-note").textContent = (state.picked.length ? `${many(chosen.length, "picked row")}. ` : `The first ${many(chosen.length, chosen.some(({ printed: theirs }) => !theirs) ? "measured row" : "row")} of the table; tick rows to choose others. `) + (nets.size === 1 ? `Net: ${[...nets][0]}.` : "");
  byId("pareto-note").textContent = costs.some(({ points }) => points.length) ? "Up and to the left is better. Dotted line: the best of these." : "";
  byId("legend").replaceChildren(...chosen.map((entry, ink) => el("li", {}, svg("svg", { width: 18, height: 14, "aria-hidden": "true" }, mark(ink, 9, 7, entry.printed)), title(entry, nets.size > 1))));
  return new Map(chosen.map((entry, ink) => [entry.key, ink]));
}

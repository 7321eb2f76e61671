// Draws the page from the dict of run/story.py.  Texts of files become texts, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const OUTCOMES = ["failure", "success", "lost"];
const COLOURS = 6; // of --s0 to --s5, for sources
const state = { source: 0, evaluation: 0 };

// ---- elements ----------------------------------------------------------------------------------

const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const SVG = "http://www.w3.org/2000/svg";
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function put(id, ...children) {
  byId(id).replaceChildren(...children.filter((child) => child != null));
}

function show(id, wanted) {
  byId(id).hidden = !wanted;
}

function table(header, rows) {
  const isNumber = (cell) => typeof cell === "string" && /^[\s\d+\-−.,%\[\]/–]+$/.test(cell);
  const line = (tag, kinds) => (cells) =>
    make("tr", {}, ...cells.map((value, k) => make(tag, { class: kinds(k, value) ? "number" : "value" }, value ?? "")));
  // A name stands where its numbers stand.
  const named = (k) => rows.some((row) => isNumber(row[k]));
  const head = header.length ? make("thead", {}, line("th", named)(header)) : null;
  return make("table", {}, head, make("tbody", {}, ...rows.map(line("td", (k, value) => isNumber(value)))));
}

// Names and what they stand for: texts, also where they look like numbers.
function fields(pairs) {
  const line = ([name, value]) => make("tr", {}, make("td", {}, name), make("td", {}, value));
  return make("table", { class: "fields" }, make("tbody", {}, ...pairs.map(line)));
}

// ---- numbers as text ---------------------------------------------------------------------------

const percent = (rate) => `${(100 * rate).toFixed(1)}\u00a0%`;
const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(1)}`;
const points = (rate) => signed(100 * rate);
const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

function short(value) {
  const number = Number(value); // "inf" is a text in the data
  const size = Math.abs(number);
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return number.toExponential(1);
  return String(Number(number.toPrecision(3)));
}

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const interval = (rate) => (rate ? `${percent(rate.rate)} [${percent(rate.low)}, ${percent(rate.high)}]` : "–");
const counted = (rate) => (rate ? `${rate.successes}/${rate.episodes}` : "");

function difference(pair) {
  if (!pair) return "no start state in common";
  const change = `${points(pair.rate)} points [${points(pair.low)}, ${points(pair.high)}]`;
  const chance = pair.p < 0.001 ? "p < 0.001" : `p = ${pair.p.toFixed(3)}`;
  return `${change} on ${count(pair.pairs, "equal start state")}: ${pair.gained} gained, ${pair.lost} lost, McNemar ${chance}`;
}

function steps(pair) {
  if (!pair || pair.steps === undefined) return "";
  const range = [pair.steps_low, pair.steps_high].map(signed).join(", ");
  return `where both succeed, ${signed(pair.steps)} control steps [${range}]`;
}

function plain(value) {
  if (typeof value === "string") return value;
  const isWords = Array.isArray(value) && value.length && value.every((word) => typeof word === "string");
  return isWords ? value.join(" ") : JSON.stringify(value) ?? "";
}

// ---- charts ------------------------------------------------------------------------------------

const EDGE = { left: 46, right: 10, top: 8, bottom: 34 };
const charts = [];

// A chart is drawn for the width that is there, so that its letters keep their size.
function chart(place, drawing) {
  charts.push([place, drawing]);
  redraw(place, drawing);
}

function redraw(place, drawing) {
  const width = Math.floor(place.clientWidth);
  if (width > 0) place.replaceChildren(...drawing(width));
}

let drawn = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === drawn) return;
  drawn = window.innerWidth;
  for (const [place, drawing] of charts) if (place.isConnected) redraw(place, drawing);
});

function ticks(low, high, most) {
  const span = high - low || 1;
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-6; k++) found.push(k * step);
  return found;
}

// Axes, and functions from values to places.
function frame(width, height, x, y, label, format = short) {
  const right = width - EDGE.right;
  const bottom = height - EDGE.bottom;
  const place = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  const across = place(x[0], x[1], EDGE.left, right);
  const up = place(y[0], y[1], bottom, EDGE.top);
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of ticks(y[0], y[1], 4)) {
    svg.append(draw("line", { class: "axis", x1: EDGE.left, x2: right, y1: up(value), y2: up(value) }));
    svg.append(draw("text", { x: EDGE.left - 6, y: up(value) + 4, "text-anchor": "end" }, format(value)));
  }
  for (const value of ticks(x[0], x[1], Math.max(2, Math.min(8, width / 90)))) {
    if (!Number.isInteger(value)) continue;
    svg.append(draw("text", { x: across(value), y: bottom + 16, "text-anchor": "middle" }, String(value)));
  }
  svg.append(draw("text", { x: (EDGE.left + right) / 2, y: height - 3, "text-anchor": "middle" }, label));
  return { svg, across, up, bottom };
}

function legend(entries) {
  const entry = ([colour, words]) => make("li", {}, make("i", { style: { background: colour } }), words);
  return make("ul", { class: "legend" }, ...entries.map(entry));
}

const colourOf = (source) => `var(--s${source % COLOURS})`;
const path = (across, up, line) => line.map(([x, y], k) => `${k ? "L" : "M"}${across(x).toFixed(1)} ${up(y).toFixed(1)}`).join("");

function band(across, up, line) {
  const above = line.map(([x, , , high]) => [x, high]);
  const below = line.map(([x, , low]) => [x, low]).reverse();
  return `${path(across, up, [...above, ...below])}Z`;
}

function reach(lines, position) {
  const values = lines.flat().map((point) => point[position]);
  return [Math.min(...values), Math.max(...values)];
}

function drawSuccess(runs) {
  return (width) => {
    const lines = runs.flatMap(([, run]) => [run.training, run.evaluated]);
    const [first, last] = reach(lines, 0);
    const { svg, across, up } = frame(width, Math.min(320, 180 + width / 6), [first, Math.max(last, first + 1)], [0, 1], "iteration", (rate) => `${Math.round(100 * rate)} %`);
    for (const [k, run] of runs) {
      const colour = colourOf(k);
      svg.append(draw("path", { d: band(across, up, run.training), fill: colour, opacity: 0.14 }));
      svg.append(draw("path", { d: path(across, up, run.training), fill: "none", stroke: colour, "stroke-width": 1.4, opacity: 0.75 }));
      svg.append(draw("path", { d: path(across, up, run.evaluated), fill: "none", stroke: colour, "stroke-width": 1.4, "stroke-dasharray": "2 4" }));
      for (const [x, rate, low, high] of run.evaluated) {
        const words = `${data.sources[k].name}: evaluation at iteration ${x}: ${percent(rate)} [${percent(low)}, ${percent(high)}]`;
        const bar = draw("line", { x1: across(x), x2: across(x), y1: up(low), y2: up(high), stroke: colour, "stroke-width": 2 });
        const dot = draw("circle", { cx: across(x), cy: up(rate), r: 4.5, fill: colour }, draw("title", {}, words));
        svg.append(bar, dot);
      }
    }
    const entries = runs.map(([k]) => [colourOf(k), data.sources[k].name]);
    const note = make("p", { class: "note" }, "Line: episodes of training, which explore; dots: evaluations, which do not. Bands and bars are Wilson intervals of 95 %.");
    return [svg, runs.length > 1 ? legend(entries) : null, note].filter(Boolean);
  };
}

function drawPanel(runs, metric, words) {
  return (width) => {
    const lines = runs.map(([, run]) => run.panels[metric]);
    const [first, last] = reach(lines, 0);
    const [low, high] = reach(lines, 1);
    const margin = (high - low || Math.abs(high) || 1) * 0.05;
    const { svg, across, up } = frame(width, 170, [first, Math.max(last, first + 1)], [low - margin, high + margin], "iteration");
    for (const [k, run] of runs) {
      const line = run.panels[metric];
      svg.append(draw("path", { d: path(across, up, line), fill: "none", stroke: colourOf(k), "stroke-width": 1.5 }));
      if (line.length === 1) svg.append(draw("circle", { cx: across(line[0][0]), cy: up(line[0][1]), r: 3, fill: colourOf(k) }));
    }
    return [make("h3", {}, words), svg];
  };
}

function learning() {
  const runs = data.sources.map((source, k) => [k, source.run]).filter(([, run]) => run && (run.training.length || run.evaluated.length));
  show("learning", runs.length);
  if (!runs.length) return;
  chart(byId("success"), drawSuccess(runs));
  const drawPanels = () => {
    const names = runs[0][1].panel_names;
    const having = (metric) => runs.filter(([, run]) => run.panels[metric].length);
    const panels = Object.entries(names).filter(([metric]) => having(metric).length);
    const places = panels.map(() => make("div"));
    put("panels", ...places); // all of them first: they share the width
    panels.forEach(([metric, words], k) => chart(places[k], drawPanel(having(metric), metric, words)));
  };
  byId("more").addEventListener("toggle", drawPanels, { once: true });
}

// ---- the top -----------------------------------------------------------------------------------

function status(source) {
  const run = source.run;
  if (!run) return "an evaluation";
  if (run.ended) return `${run.algorithm} on ${run.suite}, complete: ${count(run.iterations, "iteration")}`;
  return `${run.algorithm} on ${run.suite}, ${run.iterations} of ${run.total} iterations, not complete`;
}

function top() {
  const [only] = data.sources;
  const title = data.sources.length === 1 ? only.name : `${data.sources.length} compared`;
  byId("title").textContent = title;
  document.title = `${title} – pirl report`;
  const what = data.sources.length === 1 ? `${status(only)}. ` : "";
  byId("lead").textContent = `${what}Written ${data.made.replace("T", " ").replace("+00:00", " UTC")}.`;
}

function compared() {
  show("compared", data.sources.length > 1);
  const row = (source) => {
    const change = source.change;
    const own = source.evaluations;
    const named = (name) => own.find((one) => one.name === name)?.total;
    const last = change ? named(change.second) : own.at(-1)?.total;
    const seconds = source.run ? source.run.time.reduce((sum, bar) => sum + bar.whole * bar.count, 0) : 0;
    return [source.name, status(source), change ? interval(named(change.first)) : "–", interval(last), counted(last), seconds ? duration(seconds) : "–"];
  };
  put("sides", table(["", "", "before", "after, or last", "episodes", "training"], data.sources.map(row)));
  const name = (pair) => `${pair.second}, against ${pair.first}`;
  const pairRow = (pair) => [name(pair), pair.total ? difference(pair.total) : "nothing in common to compare", steps(pair.total)];
  // Below the table: beside it a phone has no room for a list of fields.
  const unlike = data.pairs.filter((pair) => pair.unlike.length);
  const notes = unlike.map((pair) => make("p", { class: "note" }, `${name(pair)}: their protocols differ in ${pair.unlike.join(", ")}`));
  if (data.pairs.length) put("pairs", table(["", "difference of success", "length"], data.pairs.map(pairRow)), ...notes);
  byId("sides-note").textContent = "Success with Wilson intervals of 95 %. Differences are of equal tasks and start states (Newcombe, 95 %), those of lengths by bootstrap.";
}

function sources() {
  if (data.sources.length < 2) return;
  const button = (source, k) =>
    make("button", { type: "button", "aria-pressed": String(k === state.source), onclick: () => choose(k) }, source.name);
  put("sources", ...data.sources.map(button));
}

function choose(k) {
  state.source = k;
  const source = data.sources[k];
  const last = source.change ? source.evaluations.findIndex((one) => one.name === source.change.second) : source.evaluations.length - 1;
  state.evaluation = Math.max(0, last);
  sources();
  change(source);
  episodes(source);
  films(source);
  time(source);
  faults(source);
  findings(source);
  settings(source);
  environment(source);
}

// ---- before and after --------------------------------------------------------------------------

function drawRates(rates) {
  return (width) => {
    const height = 16 * rates.length + 4;
    const across = (rate) => 2 + rate * (width - 4);
    const svg = draw("svg", { width, height, role: "img", "aria-label": "success with interval" });
    svg.append(draw("line", { class: "axis", x1: 2, x2: width - 2, y1: height - 1, y2: height - 1 }));
    rates.forEach(([words, rate, colour], k) => {
      if (!rate) return;
      const y = 16 * k + 9;
      svg.append(draw("line", { x1: across(rate.low), x2: across(rate.high), y1: y, y2: y, stroke: colour, "stroke-width": 8, opacity: 0.3 }));
      svg.append(draw("circle", { cx: across(rate.rate), cy: y, r: 5, fill: colour }, draw("title", {}, `${words}: ${interval(rate)} ${counted(rate)}`)));
    });
    return [svg];
  };
}

function change(source) {
  show("change", source.change);
  if (!source.change) return;
  const { first, second, total, tasks, unlike } = source.change;
  const [before, after] = [first, second].map((name) => source.evaluations.find((one) => one.name === name));
  const caution = unlike.length ? ` The protocols differ in ${unlike.join(", ")}.` : "";
  byId("change-words").textContent = `${first} ${interval(before.total)}, ${second} ${interval(after.total)}. ${difference(total)}${steps(total) ? `; ${steps(total)}` : ""}.${caution}`;
  const colours = ["var(--s5)", "var(--s0)"];
  const entries = [[colours[0], first], [colours[1], second]];
  put("change-table", legend(entries));
  const line = (words, note, earlier, later) => {
    const place = make("div");
    byId("change-table").append(make("div", { class: "rates" }, make("div", { class: "name" }, words, make("small", {}, note)), place));
    chart(place, drawRates([[first, earlier, colours[0]], [second, later, colours[1]]]));
  };
  const texts = (earlier, later) => [earlier, later].map((rate) => (rate ? `${percent(rate.rate)} ${counted(rate)}` : "–")).join(" → ");
  for (const task of after.tasks) {
    const earlier = before.tasks.find((other) => other.task === task.task)?.rate;
    const pair = tasks[task.task];
    line(task.words, `${texts(earlier, task.rate)}${pair ? `, ${pair.gained} gained, ${pair.lost} lost` : ""}`, earlier, task.rate);
  }
  if (after.tasks.length > 1) line("all tasks", texts(before.total, after.total), before.total, after.total);
}

// ---- tasks and start states --------------------------------------------------------------------

const key = (episode) => `${episode[0]}:${episode[1]}`;
const current = () => data.sources[state.source].evaluations[state.evaluation];

function outcomes(evaluation) {
  return new Map(evaluation.episodes.map((episode) => [key(episode), episode[2]]));
}

function episodes(source) {
  show("episodes", source.evaluations.length);
  show("failures", source.evaluations.length);
  if (!source.evaluations.length) return;
  const option = (one, k) => make("option", { value: k, selected: k === state.evaluation ? "" : null }, one.name);
  put("which", ...source.evaluations.map(option));
  matrix();
  failures(current());
}

function matrix() {
  const one = current();
  const first = outcomes(data.sources[state.source].evaluations[0]);
  const wanted = byId("outcome").value;
  const words = byId("task").value.toLowerCase().split(/\s+/).filter(Boolean);
  const isChanged = (episode) => first.has(key(episode)) && first.get(key(episode)) !== episode[2];
  const tests = {
    all: () => true,
    changed: isChanged,
    video: (episode) => key(episode) in one.videos,
  };
  const isShown = tests[wanted] ?? ((episode) => OUTCOMES[episode[2]] === wanted);
  const byTask = Map.groupBy ? Map.groupBy(one.episodes, (episode) => episode[0]) : grouped(one.episodes);
  let shown = 0;
  const rows = [];
  for (const task of one.tasks) {
    if (!words.every((word) => task.words.toLowerCase().includes(word))) continue;
    const own = (byTask.get(task.task) ?? []).filter(isShown).sort((a, b) => a[1] - b[1]);
    if (!own.length) continue;
    shown += own.length;
    const title = make("h3", {}, task.words, make("small", {}, `${counted(task.rate)}${task.lost ? `, ${task.lost} lost` : ""}`));
    const cells = own.map((episode) => cell(one, task, episode, isChanged(episode)));
    rows.push(make("div", { class: "task" }, title, make("div", { class: "cells" }, ...cells)));
  }
  put("matrix", ...rows);
  byId("count").textContent = `${shown} of ${count(one.episodes.length, "episode")}`;
}

function grouped(episodes) {
  const found = new Map();
  for (const episode of episodes) found.set(episode[0], [...(found.get(episode[0]) ?? []), episode]);
  return found;
}

function cell(one, task, episode, isChanged) {
  const outcome = OUTCOMES[episode[2]];
  const classes = ["cell", outcome, isChanged ? "changed" : "", key(episode) in one.videos ? "video" : ""];
  const words = `start state ${episode[1]}: ${outcome}, ${count(episode[3], "control step")}`;
  const open = () => openEpisode(one, task, episode);
  const text = outcome === "lost" ? "lost" : String(episode[3]);
  return make("button", { type: "button", class: classes.join(" ").trim(), title: words, "aria-label": words, onclick: open }, text);
}

function openEpisode(one, task, episode) {
  const [number, start, outcome, played, decisions, reward, thrown] = episode;
  byId("episode-title").textContent = `${task.words}, start state ${start}`;
  const limit = one.limit ? ` of at most ${one.limit}` : "";
  byId("episode-words").textContent = `${one.name}: ${OUTCOMES[outcome]} after ${count(played, "control step")}${limit}, ${count(decisions, "decision")}, reward ${short(reward)}${thrown ? "; the start state throws an object" : ""}. Task ${number}.`;
  const video = one.videos[key(episode)];
  put("episode-film", film(video));
  const others = data.sources.flatMap((source) => source.evaluations.map((other) => [source, other]));
  const rows = [];
  for (const [source, other] of others) {
    const twin = other !== one && other.protocol.suite === one.protocol.suite && other.episodes.find((found) => key(found) === key(episode));
    if (twin) rows.push([data.sources.length > 1 ? `${source.name}, ${other.name}` : other.name, OUTCOMES[twin[2]], count(twin[3], "control step")]);
  }
  put("episode-others", rows.length ? table(["elsewhere", "", ""], rows) : null);
  byId("episode").showModal();
}

function film(video) {
  if (!video) return make("p", { class: "note" }, "No video of this episode was recorded.");
  if (video.link) return make("p", {}, make("a", { href: video.link }, "the video, a file beside this page"));
  const player = make("video", { controls: "", playsinline: "", muted: "", preload: "auto", src: `data:video/mp4;base64,${video.data}` });
  return make("div", {}, player, make("p", { class: "note" }, "It begins with the start image."));
}

byId("episode").addEventListener("close", () => put("episode-film"));
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("outcome").addEventListener("change", matrix);
byId("task").addEventListener("input", matrix);
byId("which").addEventListener("change", (event) => {
  state.evaluation = Number(event.target.value);
  matrix();
  failures(current());
});

// ---- when episodes end -------------------------------------------------------------------------

const BINS = 24;

function failures(one) {
  const failed = one.episodes.filter((episode) => episode[2] === 0);
  const won = one.episodes.filter((episode) => episode[2] === 1);
  const lost = one.episodes.length - failed.length - won.length;
  const late = one.limit ? failed.filter((episode) => episode[3] >= one.limit).length : 0;
  const parts = [`${one.name}: ${count(failed.length, "failure")}`];
  if (one.limit) parts.push(`${late} ran out of time at ${one.limit} control steps, ${failed.length - late} ended before`);
  if (won.length) parts.push(`half of the ${count(won.length, "success", "successes")} took ${median(won.map((episode) => episode[3]))} control steps or fewer`);
  if (lost) parts.push(`${lost} lost with their simulators`);
  byId("failures-words").textContent = `${parts.join("; ")}.`;
  const longest = Math.max(one.limit ?? 0, ...one.episodes.map((episode) => episode[3]), 1);
  const bins = Math.min(BINS, longest);
  const counts = Array.from({ length: bins }, () => [0, 0]);
  for (const episode of [...failed, ...won]) {
    const bin = Math.max(0, Math.min(bins - 1, Math.floor((episode[3] / longest) * bins)));
    counts[bin][episode[2]] += 1;
  }
  chart(byId("histogram"), drawEnds(counts, longest));
}

function median(values) {
  return values.sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];
}

function drawEnds(counts, longest) {
  return (width) => {
    const most = Math.max(1, ...counts.map(([failed, won]) => failed + won));
    const { svg, across, up } = frame(width, 200, [0, longest], [0, most], "control steps until the end");
    counts.forEach(([failed, won], k) => {
      const from = across((k * longest) / counts.length);
      const wide = across(((k + 1) * longest) / counts.length) - from - 1.5;
      const words = `${Math.round((k * longest) / counts.length)} to ${Math.round(((k + 1) * longest) / counts.length)} control steps: ${failed} failed, ${won} succeeded`;
      const box = (low, high, colour) =>
        draw("rect", { x: from, width: Math.max(wide, 1), y: up(high), height: up(low) - up(high), fill: colour }, draw("title", {}, words));
      if (failed) svg.append(box(0, failed, "var(--bad)"));
      if (won) svg.append(box(failed, failed + won, "var(--good)"));
    });
    return [svg, legend([["var(--bad)", "failure"], ["var(--good)", "success"]])];
  };
}

function films(source) {
  show("films", source.films.length);
  const open = (one) => {
    byId("episode-title").textContent = one.name.replaceAll("_", " ");
    byId("episode-words").textContent = "";
    put("episode-film", film(one));
    put("episode-others");
    byId("episode").showModal();
  };
  const button = (one) => make("button", { type: "button", onclick: () => open(one) }, one.name.replaceAll("_", " "));
  put("films-list", ...source.films.map(button));
}

// ---- time and faults ---------------------------------------------------------------------------

function time(source) {
  const bars = source.run?.time ?? [];
  show("time", bars.length);
  if (!bars.length) return;
  const names = Object.keys(bars[0].parts).filter((name) => bars.some((bar) => bar.parts[name] > 0));
  const total = (name) => bars.reduce((sum, bar) => sum + bar.parts[name] * bar.count, 0);
  const whole = bars.reduce((sum, bar) => sum + bar.whole * bar.count, 0);
  const iterations = bars.reduce((sum, bar) => sum + bar.count, 0);
  const left = source.run.ended ? 0 : source.run.total - source.run.iterations;
  const end = left > 0 ? `; about ${duration((left * whole) / iterations)} left` : "";
  byId("time-words").textContent = `${count(iterations, "iteration")} in ${duration(whole)}, ${duration(whole / iterations)} each${end}.`;
  const entries = names.map((name, k) => [`var(--s${k})`, `${name} ${percent(total(name) / (whole || 1))}`]);
  chart(byId("budget"), (width) => {
    const most = Math.max(...bars.map((bar) => names.reduce((sum, name) => sum + bar.parts[name], 0)), 1e-9);
    const first = bars[0].first;
    const last = bars.at(-1).last + 1;
    const { svg, across, up } = frame(width, 220, [first, last], [0, most], "iteration", (value) => `${short(value)} s`);
    for (const bar of bars) {
      let below = 0;
      const wide = Math.max(1, across(bar.last + 1) - across(bar.first) - 1);
      names.forEach((name, k) => {
        const above = below + bar.parts[name];
        const reached = bar.first === bar.last ? `iteration ${bar.first}` : `iterations ${bar.first} to ${bar.last}, mean`;
        const words = draw("title", {}, `${reached}: ${name} ${duration(bar.parts[name])}`);
        svg.append(draw("rect", { x: across(bar.first), width: wide, y: up(above), height: up(below) - up(above), fill: `var(--s${k})` }, words));
        below = above;
      });
    }
    return [svg, legend(entries)];
  });
}

function faults(source) {
  show("faults", source.run);
  if (!source.run) return;
  const where = (fault) => (fault.where.length > 12 ? `${fault.where.slice(0, 12).join(", ")} and ${fault.where.length - 12} more` : fault.where.join(", "));
  const rows = source.run.faults.filter((fault) => fault.count).map((fault) => [fault.what, short(fault.count), where(fault)]);
  if (source.damaged.length) rows.push(["damaged files set aside", String(source.damaged.length), source.damaged.join(", ")]);
  put("faults-table", rows.length ? table(["", "how often", "iterations"], rows) : make("p", {}, "None: no simulator was replaced, no episode lost, no update skipped."));
}

function findings(source) {
  const found = source.run?.findings ?? [];
  show("questions", found.length);
  const line = (one) =>
    make("div", {}, make("h3", {}, make("span", { class: `verdict ${one.verdict}` }, one.verdict), one.question), make("p", { class: "note" }, one.change ? `${one.seen} → ${one.change}` : one.seen));
  put("findings", ...found.map(line));
}

// ---- settings ----------------------------------------------------------------------------------

function flat(tree, prefix = "") {
  return Object.entries(tree).flatMap(([name, value]) => {
    const isSection = value && typeof value === "object" && !Array.isArray(value);
    return isSection ? flat(value, `${prefix}${name}.`) : [[prefix + name, plain(value)]];
  });
}

function settings(source) {
  const run = source.run;
  show("settings", run || source.evaluations.length);
  if (run) {
    byId("settings-words").textContent = `${count(run.changes.length, "field")} other than ${run.against}, as today's version has it:`;
    put("settings-table", run.changes.length ? fields(run.changes) : null);
    put("settings-all", fields(flat(run.config)));
    return;
  }
  byId("settings-words").textContent = "The rules that this was played by:";
  put("settings-table", fields(flat(source.evaluations[0].protocol)));
  put("settings-all", fields(flat(source.evaluations[0].policy)));
}

function environment(source) {
  const machine = (start, k) => {
    const { packages = {}, ...rest } = start;
    const versions = Object.entries(packages ?? {}).filter(([, version]) => version);
    const rows = [...flat(rest), ["packages", versions.map(([name, version]) => `${name} ${plain(version)}`).join(", ")]];
    const title = start.first_iteration === undefined ? "played on" : `start at iteration ${plain(start.first_iteration)}`;
    return make("details", { open: k === source.starts.length - 1 && source.starts.length === 1 ? "" : null }, make("summary", {}, title), make("div", { class: "wide" }, fields(rows)));
  };
  put("machines", ...source.starts.map(machine));
}

top();
compared();
learning();
choose(0);

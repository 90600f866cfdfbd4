// SPDX-License-Identifier: Apache-2.0
// The status page: asks /v1/status and /v1/runs and draws. Everything from the server becomes text nodes or numbers, never markup.
"use strict";

const KEEP = 300;                  // samples of a chart: five minutes at most,
const START = 60;                  // and a minute of room at first
const PERIOD_MS = 1000;
const HISTORY_MS = 5000;           // how often a run's curve is asked for
const SVG = "http://www.w3.org/2000/svg";
const series = {positions: [], answered: [], rejected: [], queue: [], found: []};
const curves = new Map();          // run id -> {asked, points}
let before = null, failures = 0;

const $ = (id) => document.getElementById(id);

function count(v) {
  if (!Number.isFinite(v)) return "–";
  if (v === 0) return "0";
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e4]])
    if (Math.abs(v) >= size) return (v / (unit === "k" ? 1e3 : size)).toPrecision(3) + " " + unit;
  return Math.abs(v) >= 100 || Number.isInteger(v) ? v.toFixed(0) : v.toPrecision(2);
}

function bytes(v) {
  let i = 0;
  for (; v >= 1024 && i < 5; i++) v /= 1024;
  return (i ? v.toPrecision(3) : v) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][i];
}

function duration(s) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const i = Math.max(0, parts.findIndex(([size]) => s >= size));
  if (s < 1) return "0 s";
  const [size, unit] = parts[i], next = parts[i + 1];
  const rest = next ? Math.floor(s % size / next[0]) : 0;
  return Math.floor(s / size) + " " + unit + (rest ? " " + rest + " " + next[1] : "");
}

function node(name, attributes, text) {
  const e = name === "svg" || attributes?.svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {}))
    if (key !== "svg") e.setAttribute(key, value);
  if (text !== undefined) e.textContent = text;
  return e;
}

const shape = (name, attributes, text) => node(name, {...attributes, svg: true}, text);

// lists: of numbers, drawn from the right edge; low: the scale begins at 0 unless said otherwise.
function draw(svg, lists, slots, low) {
  const W = 600, H = 100;
  const all = lists.flat().filter(Number.isFinite);
  let top = Math.max(...all, low === undefined ? 1e-9 : -Infinity), bottom = low === undefined ? 0 : Math.min(...all);
  if (!all.length) { top = 1; bottom = 0; }
  if (top - bottom < 1e-9) top = bottom + 1;
  const x = (i, n) => W - (n - 1 - i) * W / Math.max(1, slots - 1);
  const y = (v) => H - 2 - (v - bottom) / (top - bottom) * (H - 6);
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const parts = [0.02, 0.5, 0.96].map((f) => shape("line", {class: "grid", x1: 0, x2: W, y1: H * f, y2: H * f}));
  lists.forEach((list, k) => {
    const points = list.map((v, i) => Number.isFinite(v) ? `${x(i, list.length).toFixed(1)},${y(v).toFixed(1)}` : null).filter(Boolean);
    if (points.length < 2) return;
    if (!k && low === undefined)
      parts.push(shape("polygon", {class: "area", points: `${points[0].split(",")[0]},${H - 2} ${points.join(" ")} ${points.at(-1).split(",")[0]},${H - 2}`}));
    parts.push(shape("polyline", {class: k ? "line second" : "line", points: points.join(" ")}));
  });
  svg.replaceChildren(...parts, shape("title", {}, `largest ${count(top)}`));
}

function push(name, value) {
  series[name].push(value);
  if (series[name].length > KEEP) series[name].shift();
}

function take(s) {
  const now = performance.now() / 1000;
  const last = before;
  before = {now, s};
  if (!last || s.uptime_s < last.s.uptime_s) return;      // the first, or another process
  const dt = Math.max(1e-3, now - last.now), rate = (f) => Math.max(0, (f(s) - f(last.s)) / dt);
  const cached = s.sequences.cached - last.s.sequences.cached, computed = s.sequences.computed - last.s.sequences.computed;
  push("positions", rate((v) => v.forward.positions));
  push("answered", rate((v) => v.requests.answered));
  push("rejected", rate((v) => v.requests.rejected));
  push("queue", s.queue.requests);
  push("found", cached + computed ? 100 * cached / (cached + computed) : NaN);
  $("passes").textContent = count(rate((v) => v.forward.passes));
  $("appended").textContent = s.store ? count(rate((v) => v.store.appended)) : "–";
  for (const [id, name] of [["positions-now", "positions"], ["answered-now", "answered"], ["queue-now", "queue"], ["found-now", "found"]])
    $(id).textContent = count(series[name].at(-1));
}

function showState(s) {
  const state = $("state");
  state.textContent = s.ready ? s.degraded.length ? "degraded" : "ready" : "not ready";
  state.className = "pill " + (s.ready ? s.degraded.length ? "wait" : "good" : "bad");
  $("degraded").replaceChildren(...s.degraded.map((name) => node("span", {class: "pill wait"}, name)));
  $("why").hidden = s.ready;
  $("why").textContent = s.why ?? "";
  const facts = [];
  if (s.load) facts.push(Object.keys(s.load).join(", "));
  if (s.device) facts.push(`${s.device.name}, ${s.device.numeric}`);
  facts.push(`up ${duration(s.uptime_s)}`, `version ${s.version}`);
  $("facts").textContent = facts.join(" · ");
}

function show(s) {
  showState(s);
  const r = s.requests, f = s.forward;
  $("answered").textContent = count(r.answered);
  $("rejected").textContent = count(r.rejected);
  $("cancelled").textContent = count(r.cancelled);
  $("mixed").textContent = f.passes ? (100 * f.mixed_passes / f.passes).toFixed(0) + " %" : "–";
  $("canary").textContent = s.canary ? `${duration(s.canary.age_s)} ago` : "–";
  $("waiting").textContent = count(s.queue.sequences_waiting);
  $("tokens").value = s.queue.tokens / s.queue.tokens_limit;
  $("bytes").value = s.queue.bytes / s.queue.bytes_limit;
  $("records").textContent = s.store ? count(s.store.records) : "no store";
  $("size").textContent = s.store ? bytes(s.store.bytes) : "–";
  for (const svg of document.querySelectorAll("svg[data-series]"))
    draw(svg, svg.dataset.series.split(" ").map((name) => series[name]), Math.max(START, series.queue.length));
}

// ---- runs

function runLine(run, p) {
  const parts = [Number.isFinite(run.restarting_in_s) ? `${run.state} in ${Math.ceil(run.restarting_in_s)} s` : run.state];
  if (Number.isFinite(p.step)) parts.push(`step ${p.step}${p.steps ? " of " + p.steps : ""}`);
  if (Number.isFinite(p.loss)) parts.push(`loss ${p.loss.toPrecision(4)}`);
  if (Number.isFinite(p.tokens_per_second)) parts.push(`${count(p.tokens_per_second)} tokens / s`);
  if (run.reason) parts.push(run.reason);
  return parts.join(" · ");
}

function showRun(run) {
  const p = run.progress ?? {};
  const points = (curves.get(run.id)?.points ?? []).filter((p) => Number.isFinite(p.loss));
  const left = node("div"), right = node("div"), chart = node("svg", {class: "chart", role: "img", "aria-label": "loss by step"});
  left.append(node("h3", {}, run.id), node("p", {class: "quiet"}, runLine(run, p)));
  if (p.steps > 0 && Number.isFinite(p.step)) {
    const bar = node("div", {class: "bar"}), svg = node("svg", {viewBox: "0 0 100 1", preserveAspectRatio: "none"});
    svg.append(shape("rect", {width: Math.min(100, 100 * p.step / p.steps), height: 1}));
    bar.append(svg);
    left.append(bar);
  }
  if (points.length > 1) {
    draw(chart, [points.map((p) => p.loss)], points.length, "from the smallest");
    right.append(chart, node("p", {class: "quiet"}, `loss ${points[0].loss.toPrecision(4)} → ${points.at(-1).loss.toPrecision(4)}`));
  }
  const line = node("div", {class: "run"});
  line.append(left, right);
  return line;
}

async function askCurve(run) {
  const now = performance.now(), known = curves.get(run.id);
  if (known && (now - known.asked < HISTORY_MS || known.state !== "running")) return;
  const reply = await ask(`v1/runs/${encodeURIComponent(run.id)}/metrics`);
  curves.set(run.id, {asked: now, state: run.state, points: reply.points});
}

async function showRuns(s) {
  if (!s.runs) return;
  const {runs} = await ask("v1/runs").catch(() => ({runs: []}));      // a token may not be for runs
  const latest = runs.slice(-8).reverse();
  for (const run of latest) await askCurve(run);
  $("running").textContent = `${s.runs.running} under way`;
  $("no-runs").hidden = latest.length > 0;
  $("run-list").replaceChildren(...latest.map(showRun));
}

// ---- asking

async function ask(path) {
  const token = sessionStorage.getItem("token"), headers = token ? {Authorization: "Bearer " + token} : {};
  const reply = await fetch(path, {headers, cache: "no-store"});
  $("login").hidden = reply.status !== 401;
  if (!reply.ok) throw new Error(`${path}: ${reply.status}`);
  return reply.json();
}

async function tick() {
  if (document.hidden) return;
  try {
    const s = await ask("v1/status");
    failures = 0;
    take(s);
    show(s);
    await showRuns(s);
  } catch (e) {
    failures++;
    $("state").textContent = "no answer";
    $("state").className = "pill bad";
    $("why").hidden = false;
    $("why").textContent = String(e.message);
  }
}

async function loop() {
  await tick();
  setTimeout(loop, PERIOD_MS * Math.min(10, 1 + failures));
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  tick();
});
loop();

/**
 * The status page: asks the program that served it, and shows what it answers. What comes from the network is
 * text, and becomes nothing else.
 */
import { Chart } from "./charts.js";
import { byteRate, duration, milliseconds, point, short, sum, topReasons } from "./numbers.js";

const STATUS_MS = 2_000;
const HEALTH_MS = 15_000;
const CONFIG_MS = 30_000;
/** The page was hidden for longer than this: the program knows more of the time between. */
const GAP_MS = 30_000;
const KEPT_SECONDS = 15 * 60;
const MOST_REASONS = 5;
/** The listeners' rates are those of this many seconds. */
const RATE_SECONDS = 10;

const place = (id) => document.getElementById(id);

const charts = {
  open: new Chart("Open", short, true),
  bytes: new Chart("Throughput", byteRate, true),
  refused: new Chart("Refused a second", short, false),
  latency: new Chart("Latency", milliseconds, false),
};
place("charts").append(...Object.values(charts).map(({ element }) => element));

const OPEN = [
  { label: "connections", value: ({ connections }) => connections },
  { label: "UDP flows", value: ({ flows }) => flows },
];
const BYTES = [
  { label: "to upstreams", value: ({ up }) => up },
  { label: "to clients", value: ({ down }) => down },
];
const LATENCY = [
  { label: "connect, median", value: ({ connectHalf }) => connectHalf },
  { label: "connect, 95 %", value: ({ connectMost }) => connectMost },
  { label: "header, 95 %", value: ({ headerMost }) => headerMost },
];

let bounds = [];
let last;
let points = [];
/** Answers of the last seconds, for the listeners' rates. */
let recent = [];
let health = new Map();
let workers;
let started;

async function ask(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return await response.json();
}

/** Asks again and again while somebody looks, one question at a time. */
async function poll(milliseconds, work) {
  for (;;) {
    if (!document.hidden) {
      try {
        await work();
      } catch (error) {
        if (work === showStatus) showTrouble(error);
      }
    }
    await new Promise((wake) => setTimeout(wake, milliseconds));
  }
}

async function showStatus() {
  const answer = await ask("status.json");
  const { status, time, latency } = answer;
  const sample = { time, total: status.total, latency };
  // Another process, or this one after its clock was set.
  const start = `${status.pid} ${Math.round((time / 1000 - status.uptime) / 10)}`;
  const isNew = start !== started || last === undefined || time < last.time;
  if (isNew || time - last.time > GAP_MS) await begin(start);
  if (last && time > last.time) add(point(last, sample, bounds));
  last = sample;
  recent = [...recent.filter((one) => time - one.time <= RATE_SECONDS * 1000), answer];
  place("trouble").hidden = true;
  showHead(status);
  showTiles(status.total);
  showCharts();
  showListeners(answer);
  showNotes(answer);
}

/** Takes the program's own memory of the last minutes. */
async function begin(start) {
  const { boundsMs, samples } = await ask("history.json");
  bounds = boundsMs;
  started = start;
  recent = [];
  points = samples.slice(1).map((sample, index) => point(samples[index], sample, bounds));
  last = samples.at(-1);
}

function add(next) {
  points.push(next);
  const oldest = next.time - KEPT_SECONDS;
  points = points.filter(({ time }) => time >= oldest);
}

function showTrouble(error) {
  const reason = error instanceof Error ? error.message : String(error);
  place("trouble").textContent =
    `No answer from mmproxy (${reason}). It may have stopped; trying again.`;
  place("trouble").hidden = false;
  setPill(place("state"), "bad", "no answer");
}

function setPill(element, kind, text) {
  element.className = `pill ${kind}`;
  element.textContent = text;
}

function showHead(
  { version, pid, uptime, workers: { configured, serving }, stopping, lastReloadGood },
) {
  place("version").textContent = version;
  const bad = [...health.values()].filter(({ good }) => !good).length;
  const [kind, text] = stopping
    ? ["warn", "stopping"]
    : serving < configured
    ? ["bad", `${serving} of ${configured} workers running`]
    : bad > 0
    ? ["bad", `${bad} of ${health.size} listeners not ready`]
    : !lastReloadGood
    ? ["warn", "last reload failed"]
    : workers === undefined
    ? ["", "checking"]
    : ["good", "healthy"];
  setPill(place("state"), kind, text);
  const counted = `${configured} ${configured === 1 ? "worker" : "workers"}`;
  place("about").textContent = `up ${duration(uptime)}, ${counted}, pid ${pid}`;
}

function showTiles(total) {
  const now = points.at(-1);
  const tiles = [
    ["connections", "Connections", short(total.connections)],
    ["flows", "UDP flows", short(total.flows)],
    ["opened", "New a second", now ? short(now.opened) : "–"],
    ["up", "To upstreams", now ? byteRate(now.up) : "–"],
    ["down", "To clients", now ? byteRate(now.down) : "–"],
    ["refused", "Refused in total", short(sum(total.refused))],
  ];
  const list = place("tiles");
  if (list.children.length === 0) list.append(...tiles.map(([name, label]) => tile(name, label)));
  for (const [name, , value] of tiles) place(`tile-${name}`).textContent = value;
}

function tile(name, label) {
  const element = document.createElement("div");
  element.className = "tile";
  const value = textElement("dd", "");
  value.id = `tile-${name}`;
  element.append(textElement("dt", label), value);
  return element;
}

function showCharts() {
  charts.open.show(OPEN, points);
  charts.bytes.show(BYTES, points);
  charts.latency.show(LATENCY, points);
  const reasons = topReasons(points, MOST_REASONS);
  const others = ({ refused }) =>
    sum(refused) - reasons.reduce((all, name) => all + (refused[name] ?? 0), 0);
  const series = reasons.map((name) => ({
    label: name,
    value: ({ refused }) => refused[name] ?? 0,
  }));
  if (points.some((one) => others(one) > 1e-9)) series.push({ label: "others", value: others });
  charts.refused.show(
    series.length > 0 ? series : [{ label: "none", value: () => 0 }],
    points,
  );
}

function textElement(name, text, className) {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function showListeners({ time, status, omittedListeners }) {
  const before = recent[0];
  const earlier = new Map(before?.status.listeners.map((listener) => [listener.name, listener]));
  const seconds = before ? (time - before.time) / 1000 : 0;
  const rows = status.listeners.flatMap((listener) => {
    const then = earlier.get(listener.name);
    const rate = (counter) =>
      then && seconds > 0 ? Math.max(0, counter(listener) - counter(then)) / seconds : undefined;
    const found = health.get(listener.name);
    const state = document.createElement("span");
    if (!found) setPill(state, "", "not checked");
    else if (found.good) setPill(state, "good", "ready");
    else setPill(state, "bad", "not ready");
    const protocol = listener.protocol === "both" ? "tcp+udp" : listener.protocol;
    const row = document.createElement("tr");
    const name = textElement("th", listener.name);
    name.scope = "row";
    row.append(
      name,
      cell("Health", state),
      cell("Listen", `${listener.listen.join(", ")} (${protocol})`, "wide"),
      cell("Upstream", listener.upstreams.join(", "), "wide"),
      cell("Connections", short(listener.connections), "number"),
      cell("Flows", short(listener.flows), "number"),
      cell("New/s", some(rate((one) => one.accepted + one.flowsOpened), short), "number"),
      cell("Up", some(rate((one) => one.bytesUp), byteRate), "number"),
      cell("Down", some(rate((one) => one.bytesDown), byteRate), "number"),
      cell("Refused", short(sum(listener.refused)), "number"),
    );
    if (!found || found.good) return [row];
    const why = document.createElement("tr");
    why.className = "why";
    const reason = textElement("td", found.text);
    reason.colSpan = 10;
    why.append(reason);
    return [row, why];
  });
  place("listeners").replaceChildren(...rows);
  place("omitted").hidden = omittedListeners === 0;
  place("omitted").textContent = `and ${omittedListeners} more: mmproxy status lists all`;
}

const some = (rate, format) => rate === undefined ? "–" : format(rate);

function cell(label, content, kind = "") {
  const element = document.createElement("td");
  element.dataset.label = label;
  if (kind === "wide") element.dataset.wide = "";
  if (kind === "number") element.className = "number";
  element.append(content);
  return element;
}

function showNotes({ time, notes, notesRefusals }) {
  place("notes").replaceChildren(...notes.map((note) => {
    const item = document.createElement("li");
    const head = document.createElement("div");
    head.className = "note-head";
    const when = textElement("time", `${duration((time - note.time) / 1000)} ago`);
    when.dateTime = new Date(note.time).toISOString();
    const name = textElement("span", note.reason ?? note.event, "pill warn");
    const whose = [note.listener, note.count > 1 ? `${note.count} times` : ""].filter(Boolean);
    head.append(name, textElement("span", whose.join(", ")), when);
    item.append(head, textElement("p", note.message));
    if (note.advice) item.append(textElement("p", note.advice, "advice"));
    return item;
  }));
  place("no-notes").hidden = notes.length > 0;
  place("no-notes").textContent = notesRefusals
    ? "None since the start."
    : "The log level is error: refusals are not noted. Set log-level to warn or lower.";
}

async function showHealth() {
  const answer = await ask("health.json");
  workers = answer.workers;
  health = new Map(answer.listeners.map((one) => [one.name, one]));
}

async function showConfig() {
  const { proxy, listeners, omitted } = await ask("config.json");
  const parts = [["Proxy", proxy], ...listeners.map(({ name, entries }) => [name, entries])];
  // What somebody opened or closed stays so.
  const isOpen = new Map(
    [...place("config").children].map((part) => [part.firstChild.textContent, part.open]),
  );
  place("config").replaceChildren(...parts.map(([title, entries]) => {
    const part = document.createElement("details");
    part.open = isOpen.get(title) ?? parts.length <= 3;
    const list = document.createElement("dl");
    list.append(
      ...entries.flatMap(([key, value]) => [textElement("dt", key), textElement("dd", value)]),
    );
    part.append(textElement("summary", title), list);
    return part;
  }));
  if (omitted > 0) {
    place("config").append(textElement("p", `and ${omitted} more listeners`, "hint"));
  }
}

// The colors of lines are the page's at the time when a chart is made.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of Object.values(charts)) chart.rebuild();
});

poll(HEALTH_MS, showHealth);
poll(CONFIG_MS, showConfig);
poll(STATUS_MS, showStatus);

// The charts: what each shows, and how it is kept at the present. uPlot is loaded when a page has one.
import { colour, duration, fromZero, make, pale, percent, picture, plain } from "./picture.js";

let library = null;
const drawn = new WeakMap();
const DASHES = { p50: [], p95: [6, 3], p99: [2, 3] };

function load() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("./vendor/uplot-1.6.32.min.js", import.meta.url).href;
    script.onload = () => resolve(window.uPlot);
    script.onerror = () => {
      library = null; // the next picture tries again
      reject(new Error("the chart library cannot be loaded"));
    };
    document.head.append(script);
  });
  return library;
}

const order = { stable: 0, canary: 1, other: 2 };

function roleOf(data, revision) {
  return data.roles[revision] ?? "other";
}

function traffic(uPlot, holder, data) {
  if (!data.lines) return note(holder, "nodata", data.trouble ?? "Prometheus says nothing.");
  const { lines, marks } = data;
  const revisions = [...lines.revisions].sort((a, b) => order[roleOf(data, a)] - order[roleOf(data, b)] || (a < b ? 1 : -1)).slice(0, 6);
  if (!revisions.some((revision) => lines.requests[revision].some((value) => value != null)))
    return note(holder, "none", "No request was counted in this time. That is no sign of health: it says nothing.");
  const short = (revision) => (roleOf(data, revision) === "other" ? revision.slice(revision.lastIndexOf("-") + 1) : roleOf(data, revision));
  const each = (values) => revisions.map((revision) => ({ label: short(revision), values: values(revision), stroke: colour(roleOf(data, revision)), tone: roleOf(data, revision) }));
  const empty = lines.times.map(() => null);
  const common = { times: lines.times, marks, group: data.group };
  const plots = [
    picture(uPlot, holder, { ...common, title: "Requests a second", words: true, say: plain(1), scale: fromZero(1), lines: each((name) => lines.requests[name]) }),
    picture(uPlot, holder, { ...common, title: "Errors (5xx), share of requests", say: percent, scale: fromZero(0.01), lines: each((name) => lines.bad[name] ?? empty) }),
  ];
  // Nine lines of revisions that are gone would hide the two that matter.
  const present = revisions.filter((name) => roleOf(data, name) !== "other");
  const latency = [];
  const bands = [];
  for (const name of present.length ? present : revisions) {
    const tone = roleOf(data, name);
    const of = Object.entries(lines.latency).filter(([, by]) => by[name]).map(([quantile, by]) => ({ label: `${short(name)} ${quantile}`, values: by[name], stroke: colour(tone), tone, dash: DASHES[quantile], width: 1.5 }));
    const at = Object.fromEntries(of.map((one, i) => [one.label.slice(-3), latency.length + i]));
    if ("p50" in at && "p95" in at) bands.push([at.p95, at.p50, pale(tone)]);
    latency.push(...of);
  }
  if (latency.length) plots.push(picture(uPlot, holder, { ...common, title: "Latency: from the median to the 95th percentile, and the 99th", say: duration, scale: fromZero(10), lines: latency, bands }));
  if (data.troubles?.length) holder.append(make("p", { class: "nodata" }, data.troubles.join(" ")));
  return plots;
}

// Where the plot ends: a limit, and what is near it. An interval that is still wide ends above it.
function roof(of) {
  const known = [...of.beyond, ...of.limit, ...of.canary, ...of.stable].filter((value) => value != null);
  return Math.min(1, Math.max(0.001, ...known) * 1.25);
}

function course(uPlot, holder, data) {
  const { course: told } = data.evidence;
  if (!told?.times.length) return note(holder, "none", "No window with a time was judged.");
  const common = { times: told.times, marks: data.marks, group: data.group };
  const part = (value) => (value == null ? "–" : `${Math.round(value * 100)} %`.replace("-", "\u2212"));
  const way = (of) => ({
    say: part,
    line: 1,
    scale: (_, low, high) => [Math.max(Math.min(low ?? 0, 0), -0.5), Math.min(Math.max((high ?? 1) * 1.1, 1.3), 2)],
    lines: [
      { label: "for the canary", values: of.for, stroke: colour("tone-good"), tone: "for" },
      { label: "against it", values: of.against, stroke: colour("tone-bad"), tone: "against", dash: [5, 3] },
    ],
  });
  const plots = [picture(uPlot, holder, { ...common, title: "Way to the threshold (100 % decides)", words: true, ...way(told) })];
  if (told.percent?.some((value) => value != null)) {
    const shares = { label: "canary", values: told.percent.map((value) => (value == null ? null : value / 100)), stroke: colour("canary"), fill: pale("canary"), tone: "canary", steps: true };
    plots.push(picture(uPlot, holder, { ...common, hidden: true, title: "Share of the traffic", say: percent, scale: fromZero(0.01), lines: [shares] }));
  }
  const metrics = Object.entries(told.metrics);
  for (const [name, of] of metrics) {
    const canary = { stroke: colour("canary"), tone: "canary" };
    const every = [
      { ...canary, label: "at most", values: of.upper, width: 0.75, dash: [2, 3] },
      { ...canary, label: "at least", values: of.lower, width: 0.75, dash: [2, 3] },
      { ...canary, label: "canary so far", values: of.canary },
      { ...canary, label: "in this window", values: of.window, dots: true },
      { label: "stable so far", values: of.stable, stroke: colour("stable"), tone: "stable" },
      { label: "limit", values: of.limit, stroke: colour("text"), tone: "limit", dash: [6, 4], width: 1 },
      { label: "promoted below", values: of.beyond, stroke: colour("quiet"), tone: "limit", dash: [2, 3], width: 1 },
    ];
    const lines = every.filter((one) => one.values.some((value) => value != null) && (one.label !== "promoted below" || of.beyond.some((value, i) => value !== of.limit[i])));
    const at = (label) => lines.findIndex((one) => one.label === label);
    const bands = at("at most") < 0 ? [] : [[at("at most"), at("at least"), pale("canary")]];
    const top = roof(of);
    plots.push(picture(uPlot, holder, { ...common, title: `${name}: the canary's share, with its interval`, say: percent, scale: () => [0, top], lines, bands, aside: of.aside }));
    if (metrics.length > 1 && of.for.some((value) => value != null))
      plots.push(picture(uPlot, holder, { ...common, hidden: true, title: `${name}: way to the threshold`, ...way(of) }));
  }
  return plots;
}

function note(holder, kind, words) {
  const [said, query] = words.split("; query: ");
  holder.append(make("p", { class: kind }, said), ...(query ? [make("pre", { "aria-label": "The query" }, query)] : []));
  return [];
}

const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));

// The new pictures are made beside the old ones, unseen, and take their place when they are painted: nothing flickers.
async function render(holder, state) {
  const uPlot = await load();
  const old = [...holder.children];
  const before = state.plots;
  const coming = make("div", { class: "coming" });
  holder.append(coming);
  try {
    state.plots = (holder.dataset.chart === "course" ? course : traffic)(uPlot, coming, state.data) ?? [];
  } catch (error) {
    coming.remove();
    throw error;
  }
  state.theme = document.documentElement.dataset.theme;
  state.width = holder.clientWidth;
  await frame();
  await frame();
  const focused = [...holder.querySelectorAll(".stage")].indexOf(document.activeElement);
  before.forEach((plot) => plot.destroy());
  old.forEach((child) => child.remove());
  coming.removeAttribute("class");
  state.drawn = true;
  if (focused >= 0) coming.querySelectorAll(".stage")[focused]?.focus({ preventScroll: true });
}

async function ask(holder, state) {
  if (document.hidden && state.data) return;
  try {
    const answer = await fetch(holder.dataset.url, { headers: { Accept: "application/json" }, cache: "no-cache", signal: AbortSignal.timeout(20000) });
    if (!answer.ok) throw new Error((await answer.json()).detail ?? answer.statusText);
    const words = await answer.text();
    if (words === state.words) return;
    state.words = words;
    state.data = { ...JSON.parse(words), group: holder.id };
    // Whoever reads a value off a chart should not lose it to the next second.
    if (state.plots.some((plot) => plot.cursor.idx != null && holder.matches(":hover, :focus-within"))) return (state.late = true);
    await render(holder, state);
  } catch (error) {
    state.words = null; // the next answer is drawn, also where it says the same
    if (!state.drawn) {
      holder.replaceChildren();
      note(holder, "nodata", `This cannot be drawn: ${error.message}`);
    }
  }
}

// Draws what the element asks for, and keeps it at the present. Called again, it only looks whether that has changed.
export function draw(holder) {
  const known = drawn.get(holder);
  if (known) return;
  const state = { plots: [], data: null, words: null, drawn: false };
  drawn.set(holder, state);
  const again = () => state.data && !holder.querySelector(".coming") && render(holder, state);
  document.addEventListener("theme", again);
  new ResizeObserver(() => state.data && Math.abs(holder.clientWidth - state.width) > 4 && again()).observe(holder);
  holder.addEventListener("mouseleave", () => state.late && ((state.late = false), again()));
  const loop = async () => {
    await ask(holder, state);
    const seconds = Number(holder.dataset.every);
    if (seconds) setTimeout(loop, seconds * 1000);
  };
  loop();
}

// The charts: uPlot, loaded when a page has one. Colours come from the style sheet, so both themes are told there.
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

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

const percent = (value) => {
  if (value == null) return "–";
  const whole = value * 100;
  return `${whole === 0 ? "0" : Math.abs(whole) >= 1 ? whole.toFixed(1).replace(/\.0$/, "") : Number(whole.toPrecision(2))} %`;
};
const plain = (digits) => (value) => (value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }).replaceAll(",", "\u202f"));
const duration = (value) => (value == null ? "–" : value >= 1000 ? `${(value / 1000).toPrecision(3)} s` : `${Math.round(value)} ms`);
const clock = (seconds, span) =>
  new Date(seconds * 1000).toLocaleTimeString("en-GB", span > 86400 ? { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" } : { hour: "2-digit", minute: "2-digit", second: "2-digit" });

// Opens, decisions and answers, as lines across a picture; the words stand above the first of a stack.
function markers(marks, withWords) {
  return (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.textAlign = "left"; // the axes leave their own behind
    ctx.font = `${11 * devicePixelRatio}px ${getComputedStyle(document.body).fontFamily}`;
    let free = -Infinity;
    for (const mark of marks) {
      const x = plot.valToPos(mark.at, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = colour(`tone-${mark.tone}`);
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash(mark.kind === "verdict" ? [] : [4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const width = ctx.measureText(mark.mark).width;
      const left = Math.min(x, bbox.left + bbox.width - width);
      if (withWords && left > free) {
        ctx.fillStyle = colour(`tone-${mark.tone}`);
        ctx.textBaseline = "bottom";
        ctx.fillText(mark.mark, left, bbox.top - 2 * devicePixelRatio);
        free = left + width + 6 * devicePixelRatio;
      }
    }
    ctx.restore();
  };
}

function threshold(at) {
  return (plot) => {
    const { ctx, bbox } = plot;
    const y = plot.valToPos(at, "y", true);
    ctx.save();
    ctx.strokeStyle = colour("text");
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.restore();
  };
}

// One picture: `lines` are {label, values, stroke, dash, width}; `say` writes a value.
function picture(uPlot, holder, { title, lines, times, marks, words, say, group, line, scale, hidden }) {
  const figure = make("figure", { class: "chart" });
  const caption = make("figcaption", {}, title);
  const stage = make("div", { class: "stage", tabindex: "0", role: "img" });
  const table = make("table", { class: "values" });
  figure.append(caption, stage, table);
  holder.append(figure);
  const cells = lines.map((one) => {
    const swatch = make("span", { class: `swatch ${one.tone}${one.dash?.length ? ` ${one.dash[0] < one.dash[1] ? "dotted" : "dashed"}` : ""}`, "aria-hidden": "true" });
    const cell = make("td", { class: "num" });
    table.append(make("tr", {}, make("th", { scope: "row" }, swatch, one.label), cell));
    return cell;
  });
  const last = (values) => values.findLast((value) => value != null);
  const tell = (plot) => {
    const at = plot?.cursor.idx;
    lines.forEach((one, i) => (cells[i].textContent = say(at == null ? last(one.values) : one.values[at])));
    caption.textContent = at == null || times[at] == null ? title : `${title}, ${clock(times[at], times.at(-1) - times[0])}`;
  };
  const spoken = lines.map((one) => `${one.label} ${say(last(one.values))}`).join(", ");
  stage.setAttribute("aria-label", `${title}. Last: ${spoken}. Arrow keys move through time.`);
  const span = times.at(-1) - times[0];
  const axis = { stroke: colour("quiet"), grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const plot = new uPlot(
    {
      width: Math.max(stage.clientWidth, 200),
      height: (hidden ? 110 : 150) + (words ? 10 : 0),
      padding: [words ? 18 : 8, span > 86400 ? 40 : 26, 0, 0], // the last time of the axis stands half beyond it
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: group }, points: { size: 5 } },
      scales: { x: { time: true }, y: { range: scale } },
      axes: [
        { ...axis, size: 24, values: (_, ticks) => ticks.map((tick) => clock(tick, span).replace(/^(\d\d:\d\d):00$/, "$1")) , space: 72 },
        { ...axis, size: 52, values: (_, ticks) => ticks.map(say), space: 28 },
      ],
      series: [
        {},
        ...lines.map((one) => ({
          stroke: one.stroke,
          width: one.width ?? 1.75,
          dash: one.dash?.length ? one.dash : undefined,
          points: { show: (_, at) => isolated(one.values), size: 3, fill: one.stroke },
          spanGaps: false,
        })),
      ],
      hooks: { draw: [markers(marks, words), ...(line == null ? [] : [threshold(line)])], setCursor: [tell] },
    },
    [times, ...lines.map((one) => one.values)],
    stage,
  );
  stage.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = Math.min(Math.max((plot.cursor.idx ?? times.length) + step, 0), times.length - 1);
    plot.setCursor({ left: plot.valToPos(times[at], "x"), top: 10 });
  });
  stage.addEventListener("blur", () => plot.setCursor({ left: -10, top: -10 }));
  tell(null);
  return plot;
}

// A point between two gaps would be invisible as a line.
const isolated = (values) => values.filter((value) => value != null).length < 3;

const fromZero = (least) => (_, low, high) => [0, Math.max((high ?? 0) * 1.15, least)];
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
  const latency = (present.length ? present : revisions).flatMap((name) =>
    Object.entries(lines.latency).filter(([, by]) => by[name]).map(([quantile, by]) => ({ label: `${short(name)} ${quantile}`, values: by[name], stroke: colour(roleOf(data, name)), tone: roleOf(data, name), dash: DASHES[quantile], width: 1.5 })),
  );
  if (latency.length) plots.push(picture(uPlot, holder, { ...common, title: "Latency", say: duration, scale: fromZero(10), lines: latency }));
  if (data.troubles?.length) holder.append(make("p", { class: "nodata" }, data.troubles.join(" ")));
  return plots;
}

function course(uPlot, holder, data) {
  const { course: told } = data.evidence;
  if (!told?.times.length) return note(holder, "none", "No window with a time was judged.");
  const common = { times: told.times, marks: data.marks, group: data.group };
  const part = (value) => (value == null ? "–" : `${Math.round(value * 100)} %`.replace("-", "\u2212"));
  const evidence = [
    { label: "for the canary", values: told.for, stroke: colour("tone-good"), tone: "for" },
    { label: "against it", values: told.against, stroke: colour("tone-bad"), tone: "against", dash: [5, 3] },
  ];
  const plots = [picture(uPlot, holder, { ...common, title: "Way to the threshold (100 % decides)", words: true, say: part, line: 1, lines: evidence, scale: (_, low, high) => [Math.max(Math.min(low ?? 0, 0), -0.5), Math.min(Math.max((high ?? 1) * 1.1, 1.3), 2)] })];
  for (const [name, sides] of Object.entries(told.shares))
    plots.push(picture(uPlot, holder, {
      ...common,
      hidden: true,
      title: `${name}: share in each window`,
      say: percent,
      scale: fromZero(0.01),
      lines: ["stable", "canary"].filter((role) => sides[role].some((value) => value != null)).map((role) => ({ label: role, values: sides[role], stroke: colour(role), tone: role })),
    }));
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

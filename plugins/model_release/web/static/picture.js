// One picture of lines over time, by uPlot. Colours come from the style sheet, so both themes are told there.
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

export const percent = (value) => {
  if (value == null) return "–";
  const whole = value * 100;
  return `${whole === 0 ? "0" : Math.abs(whole) >= 1 ? whole.toFixed(1).replace(/\.0$/, "") : Number(whole.toPrecision(2))} %`;
};
export const plain = (digits) => (value) => (value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }).replaceAll(",", "\u202f"));
export const duration = (value) => (value == null ? "–" : value >= 1000 ? `${(value / 1000).toPrecision(3)} s` : `${Math.round(value)} ms`);
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

// The colour of what is filled: the style sheet's, let through. It writes those of revisions with six digits.
export const pale = (name) => `${colour(name)}30`;

// Columns behind the lines, for the windows in which stable was failing: each ends at its time.
function columns(times, which) {
  return (plot) => {
    const { ctx, bbox } = plot;
    const width = (bbox.width * (times.length > 1 ? 1 / (times.length - 1) : 1)) / 2;
    ctx.save();
    ctx.fillStyle = colour("tint-warn");
    which.forEach((set, i) => {
      if (!set) return;
      const right = plot.valToPos(times[i], "x", true);
      const left = i ? plot.valToPos(times[i - 1], "x", true) : right - width;
      ctx.fillRect(Math.max(left, bbox.left), bbox.top, right - Math.max(left, bbox.left), bbox.height);
    });
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

// One picture: `lines` are {label, values, stroke, dash, width, fill, steps, dots}; `say` writes a value. `bands` are pairs of
// lines, by their places, with what is between them filled; `aside` says of each time whether stable was failing in it.
export function picture(uPlot, holder, { title, lines, times, marks, words, say, group, line, scale, hidden, bands, aside }) {
  const figure = make("figure", { class: "chart" });
  const caption = make("figcaption", {}, title);
  const stage = make("div", { class: "stage", tabindex: "0", role: "img" });
  const table = make("table", { class: "values" });
  figure.append(caption, stage, table);
  holder.append(figure);
  const cells = lines.map((one) => {
    const swatch = make("span", { class: `swatch ${one.tone}${one.dash?.length ? ` ${one.dash[0] < one.dash[1] ? "dotted" : "dashed"}` : ""}${one.dots ? " dots" : ""}`, "aria-hidden": "true" });
    const cell = make("td", { class: "num" });
    table.append(make("tr", {}, make("th", { scope: "row" }, swatch, one.label), cell));
    return cell;
  });
  if (aside?.some(Boolean)) {
    const swatch = make("span", { class: "swatch aside", "aria-hidden": "true" });
    table.append(make("tr", {}, make("th", { scope: "row" }, swatch, "windows with stable failing"), make("td", { class: "num" }, String(aside.filter(Boolean).length))));
  }
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
          fill: one.fill,
          paths: one.dots ? () => null : one.steps ? uPlot.paths.stepped({ align: -1 }) : undefined,
          points: { show: () => Boolean(one.dots) || isolated(one.values), size: one.dots ? 4 : 3, fill: one.stroke, width: one.dots ? 0 : undefined },
          spanGaps: false,
        })),
      ],
      bands: bands?.map(([upper, lower, fill]) => ({ series: [upper + 1, lower + 1], fill })),
      hooks: { drawClear: aside ? [columns(times, aside)] : [], draw: [markers(marks, words), ...(line == null ? [] : [threshold(line)])], setCursor: [tell] },
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

export const fromZero = (least) => (_, low, high) => [0, Math.max((high ?? 0) * 1.15, least)];

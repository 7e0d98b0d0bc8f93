/**
 * The charts: uPlot with a legend of our own, in the colors of the page.
 *
 * @typedef {{ label: string, value: (point: import("./numbers.js").Point) => number | null }} Series
 */
/* global uPlot */

const HEIGHT = 180;
const COLORS = 6;

/** @param {string} name */
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A figure with one chart. */
export class Chart {
  /**
   * @param {string} title
   * @param {(value: number) => string} format
   * @param {boolean} filled whether the area below a line is filled
   */
  constructor(title, format, filled) {
    this.title = title;
    this.format = format;
    this.filled = filled;
    /** @type {Series[]} */
    this.series = [];
    this.points = [];
    this.element = document.createElement("figure");
    this.element.className = "chart";
    const caption = document.createElement("figcaption");
    const heading = document.createElement("h2");
    heading.textContent = title;
    this.legend = document.createElement("ul");
    this.legend.className = "legend";
    caption.append(heading, this.legend);
    this.place = document.createElement("div");
    this.place.className = "plot";
    this.place.setAttribute("role", "img");
    this.element.append(caption, this.place);
    this.plot = undefined;
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  /**
   * @param {Series[]} series
   * @param {readonly import("./numbers.js").Point[]} points
   */
  show(series, points) {
    this.points = points;
    const names = (list) => list.map(({ label }) => label).join("\n");
    const isSame = this.plot && names(series) === names(this.series);
    this.series = series;
    if (isSame) this.plot.setData(this.data());
    else this.rebuild();
    this.tell(points.length - 1);
  }

  data() {
    return [
      this.points.map(({ time }) => time),
      ...this.series.map(({ value }) => this.points.map(value)),
    ];
  }

  resize() {
    const width = this.place.clientWidth;
    if (this.plot && width > 0) this.plot.setSize({ width, height: HEIGHT });
  }

  /** Makes the chart again: its series, or the page's colors, are others. */
  rebuild() {
    this.plot?.destroy();
    const axis = {
      stroke: color("--muted"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: color("--grid"), width: 1 },
      ticks: { stroke: color("--grid"), width: 1 },
    };
    const options = {
      width: Math.max(100, this.place.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      // From 0, and never a line of no height.
      scales: { y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [
        {
          ...axis,
          size: 30,
          space: 70,
          values: (_plot, times) => times.map((time) => clock(time)),
        },
        { ...axis, size: 64, values: (_plot, values) => values.map(this.format) },
      ],
      series: [
        {},
        ...this.series.map(({ label }, index) => {
          const stroke = color(`--series-${index % COLORS + 1}`);
          return {
            label,
            stroke,
            width: 1.75,
            points: { show: false },
            ...(this.filled && { fill: `${stroke}22` }),
          };
        }),
      ],
      hooks: {
        setCursor: [(plot) => this.tell(plot.cursor.idx ?? this.points.length - 1)],
      },
    };
    this.legend.replaceChildren(...this.series.map(({ label }, index) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = color(`--series-${index % COLORS + 1}`);
      item.append(swatch, `${label} `, document.createElement("b"));
      return item;
    }));
    this.plot = new uPlot(options, this.data(), this.place);
  }

  /** Says the values of a point in the legend. */
  tell(index) {
    const point = this.points[index];
    const said = this.series.map(({ label, value }, at) => {
      const number = point ? value(point) : null;
      const text = number === null || number === undefined ? "–" : this.format(number);
      const place = this.legend.children[at]?.querySelector("b");
      if (place) place.textContent = text;
      return `${label} ${text}`;
    });
    this.place.setAttribute("aria-label", `${this.title}: ${said.join(", ")}`);
  }
}

/** The time of day. */
function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    hourCycle: "h23",
  });
}

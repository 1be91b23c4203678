"use strict";

// What is on the page: `data`, written by page.py, and the reader's choices in `state`. `draw` shows a new choice,
// `show` another step of the same one. The address says surface and learning rate, so that a link can choose them.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const [BEST, ALL] = ["best", "all"];
const SPEEDS = [1, 2, 5, 10, 20, 50, 100, 200, 500];
const SECONDS_OF_A_FILM = 12;
const LEVELS = 24;
const SLOW = 100; // ms
const NO_TOOLS = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };

const prefersCalm = matchMedia("(prefers-reduced-motion: reduce)");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

const state = {
  surface: data.surfaces[0],
  lr: data.rates,
  hidden: new Set(),
  step: 0,
  speed: firstSpeed(),
  playing: false,
};

// ---- What is chosen ----

function firstSpeed() {
  const wanted = prefersCalm.matches ? 2 : data.steps / SECONDS_OF_A_FILM;
  return SPEEDS.findLast((speed) => speed <= wanted) ?? SPEEDS[0];
}

function chosenRuns() {
  if (state.lr === ALL) return state.surface.runs;
  return state.surface.runs.filter((run) => (state.lr === BEST ? run.best : run.lr === Number(state.lr)));
}

function visibleRuns() {
  return chosenRuns().filter((run) => !state.hidden.has(pathName(run)));
}

/** What tells the paths apart: the optimizer, or optimizer and rate where all rates are shown. */
const pathName = (run) => (state.lr === ALL ? `${run.optimizer} ${run.lr}` : run.optimizer);
const styleOf = (run) => (state.lr === ALL ? run.ownStyle : run.style);

/** Take the choices that the address makes, `#surface=saddle&lr=0.1`; say which of them there are not. */
function choose() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const surface = wanted.has("surface") ? data.surfaces.find(({ name }) => name === wanted.get("surface")) : state.surface;
  state.surface = surface ?? state.surface;
  const lr = wanted.has("lr") ? rateNamed(wanted.get("lr")) : state.lr;
  state.lr = lr ?? rateNamed(state.lr) ?? BEST;
  const missing = [!surface && `no surface "${wanted.get("surface")}"`, !lr && `no learning rate "${wanted.get("lr")}"`];
  $("missing").textContent = `This page has ${missing.filter(Boolean).join(" and ")}; it shows another.`;
  $("missing").hidden = !missing.some(Boolean);
}

const rates = () => [...new Set(state.surface.runs.map((run) => run.lr))];

/** A choice of the learning rate as its list says it, undefined if the surface was not run with it. */
function rateNamed(text) {
  return [BEST, ALL, ...rates().map(String)].find((choice) => choice === text || Number(choice) === Number(text));
}

function remember() {
  history.replaceState(null, "", `#${new URLSearchParams({ surface: state.surface.name, lr: state.lr })}`);
}

/** The index of a run's point at the present step: a run that was cut stays at its end. */
function index(run) {
  return Math.min(state.step, run.loss.length - 1);
}

// ---- Panels: a backdrop, and over it every path three times: all of it, what is past, and where it is now ----

class Panel {
  /** `describe` gives { backdrop, layout, type, place }; `place` maps a run to the coordinates of its path. */
  constructor(id, describe) {
    this.element = $(id);
    this.describe = describe;
    this.paths = [];
    this.busy = false;
  }

  draw() {
    const { backdrop, layout, type, place } = this.describe();
    this.type = type;
    this.paths = visibleRuns().map((run) => ({ run, at: place(run) }));
    this.first = backdrop.length;
    this.shown = state.step;
    const moving = this.moving();
    const traces = this.paths.flatMap(({ run, at }, i) => this.traces(run, at, moving.slice(2 * i, 2 * i + 2)));
    return Plotly.react(this.element, [...backdrop, ...traces], { ...baseLayout(), ...layout }, NO_TOOLS);
  }

  traces(run, at, [past, now]) {
    const { color, dash, symbol } = styleOf(run);
    const common = { type: this.type, showlegend: false };
    const hover = {
      name: run.optimizer,
      customdata: run.loss.map((loss, k) => [k, ...run.points[k], loss, run.gradNorm[k]]),
      hovertemplate: hoverText(run),
    };
    const marker = { color, symbol: this.symbol(symbol), size: this.type === "scatter3d" ? 6 : 12 };
    marker.line = { color: css("--paper"), width: 1.5 };
    return [
      { ...common, ...at, ...hover, mode: "lines", line: { color, dash: "solid", width: 1.5 }, opacity: 0.35 },
      { ...common, ...past, hoverinfo: "skip", mode: "lines", line: { color, dash, width: this.type === "scatter3d" ? 5 : 3 } },
      { ...common, ...now, hoverinfo: "skip", mode: "markers", marker },
    ];
  }

  /** Three dimensions know fewer markers. */
  symbol(symbol) {
    const flat = { "triangle-up": "circle-open", star: "diamond-open" };
    return this.type === "scatter3d" ? (flat[symbol] ?? symbol) : symbol;
  }

  /** The coordinates of what moves: for every path what is past, and where it is now. */
  moving() {
    return this.paths.flatMap(({ run, at }) => {
      const k = index(run);
      const cut = (begin) => Object.fromEntries(Object.entries(at).map(([axis, all]) => [axis, all.slice(begin, k + 1)]));
      return [cut(0), cut(k)];
    });
  }

  /** Move to the present step; while a frame is being drawn, those asked for meanwhile are skipped but the last. */
  async show() {
    if (this.busy || this.paths.length === 0) return;
    this.busy = true;
    while (this.shown !== state.step) {
      this.shown = state.step;
      const traces = this.paths.flatMap((_, i) => [this.first + 3 * i + 1, this.first + 3 * i + 2]);
      const moving = this.moving();
      const update = Object.fromEntries(Object.keys(moving[0]).map((axis) => [axis, moving.map((path) => path[axis])]));
      const began = performance.now();
      await Plotly.restyle(this.element, update, traces);
      await nextFrame();
      const took = performance.now() - began;
      if (took > SLOW) await sleep(took); // so that a slow panel leaves time to the others
    }
    this.busy = false;
  }
}

const nextFrame = () => new Promise(requestAnimationFrame);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function hoverText(run) {
  const place = run.points[0].map((_, i) => `${"xy"[i]} %{customdata[${i + 1}]:.4g}`).join(", ");
  const after = run.points[0].length + 1;
  return (
    `<b>${run.optimizer}</b>, learning rate ${run.lr}<br>step %{customdata[0]}<br>${place}` +
    `<br>loss %{customdata[${after}]:.4g}<br>|gradient| %{customdata[${after + 1}]:.4g}<extra></extra>`
  );
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function baseLayout() {
  return {
    paper_bgcolor: css("--paper"),
    plot_bgcolor: css("--paper"),
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 },
    margin: { l: 52, r: 8, t: 8, b: 44 },
    hovermode: "closest",
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--edge"), font: { color: css("--ink") } },
    dragmode: false,
  };
}

function axis(title, more) {
  const line = css("--edge");
  return { title: { text: title, standoff: 6 }, gridcolor: line, linecolor: line, zeroline: false, ...more };
}

const ends = (numbers) => [numbers[0], numbers[numbers.length - 1]];
const withMargin = (numbers) => {
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  return [low - 0.05 * (high - low), high + 0.05 * (high - low)];
};
const column = (rows, i) => rows.map((row) => row[i]);

function reliefColors() {
  return [
    [0, css("--relief-low")],
    [1, css("--relief-high")],
  ];
}

function lossTicks() {
  const [tickvals, ticktext] = [column(state.surface.ticks, 0), column(state.surface.ticks, 1)];
  return { tickvals, ticktext };
}

function describeMap() {
  const surface = state.surface;
  return surface.axes.length === 1 ? describeProfile(surface) : describeContours(surface);
}

function describeProfile(surface) {
  const [x] = surface.axes;
  const line = { color: css("--relief-line"), width: 2 };
  return {
    type: "scatter",
    backdrop: [
      { x, y: surface.values, type: "scatter", mode: "lines", line, hoverinfo: "skip", showlegend: false },
      landmarks([[...surface.start, surface.runs[0].loss[0]]], "circle-open", "start"),
      landmarks(surface.minima.map((point) => [...point, Math.min(...surface.values)]), "star-open", "minimum"),
    ],
    layout: { xaxis: axis("x", { range: ends(x) }), yaxis: axis("loss", { range: withMargin(surface.values) }) },
    place: (run) => ({ x: column(run.points, 0), y: run.loss }),
  };
}

function describeContours(surface) {
  const [x, y] = surface.axes;
  const heights = surface.heights.flat();
  const [low, high] = [Math.min(...heights), Math.max(...heights)];
  const size = (high - low) / LEVELS;
  const contours = {
    type: "contour",
    x,
    y,
    z: surface.heights,
    customdata: surface.values,
    hovertemplate: "x %{x:.3g}, y %{y:.3g}<br>loss %{customdata:.4g}<extra></extra>",
    colorscale: reliefColors(),
    contours: { coloring: "fill", start: low + size, end: high - size / 2, size },
    line: { color: css("--relief-line"), width: 0.6 },
    colorbar: { title: { text: "loss" }, thickness: 10, outlinewidth: 0, ...lossTicks() },
  };
  return {
    type: "scatter",
    backdrop: [
      contours,
      landmarks([surface.start], "circle-open", "start"),
      landmarks(surface.minima, "star-open", "minimum"),
      landmarks(surface.saddles, "x-thin-open", "saddle"),
    ],
    layout: {
      xaxis: axis("x", { range: ends(x), constrain: "domain" }),
      yaxis: axis("y", { range: ends(y), constrain: "domain", scaleanchor: "x" }),
    },
    place: (run) => ({ x: column(run.points, 0), y: column(run.points, 1) }),
  };
}

function landmarks(points, symbol, name) {
  return {
    x: column(points, 0),
    y: column(points, 1),
    type: "scatter",
    mode: "markers",
    marker: { symbol, size: 14, color: css("--ink"), line: { color: css("--ink"), width: 1.5 } },
    hovertemplate: `${name}<br>x %{x:.4g}, y %{y:.4g}<extra></extra>`,
    showlegend: false,
  };
}

function describeCurves() {
  const { label, logarithmic, limits } = state.surface.lossAxis;
  const yaxis = logarithmic
    ? { type: "log", range: limits.map(Math.log10), exponentformat: "power", dtick: decades(limits) }
    : { range: limits };
  return {
    type: "scatter",
    backdrop: [],
    layout: { xaxis: axis("step", { range: [-0.02 * data.steps, 1.03 * data.steps] }), yaxis: axis(label, { ...yaxis, automargin: true }) },
    place: (run) => ({ x: run.curve.map((_, k) => k), y: run.curve }),
  };
}

/** So many decades between two ticks that there are about eight; within two decades, ticks at 1, 2 and 5. */
function decades([low, high]) {
  const all = Math.log10(high / low);
  return all < 2 ? "D2" : Math.ceil(all / 8);
}

function describeRelief() {
  const { axes, heights, values } = state.surface;
  const [x, y] = axes;
  const flat = heights.flat();
  const [low, high] = [Math.min(...flat), Math.max(...flat)];
  const lift = 0.015 * (high - low); // or the paths would sink into the surface
  const edge = { gridcolor: css("--edge"), backgroundcolor: css("--paper"), showspikes: false, tickfont: { size: 11 } };
  const isOutside = ([px, py]) => px < x[0] || px > x[x.length - 1] || py < y[0] || py > y[y.length - 1];
  const inside = (run, all) => all.map((value, k) => (isOutside(run.points[k]) ? null : value));
  return {
    type: "scatter3d",
    backdrop: [
      {
        type: "surface",
        x,
        y,
        z: heights,
        customdata: values,
        hovertemplate: "x %{x:.3g}, y %{y:.3g}<br>loss %{customdata:.4g}<extra></extra>",
        colorscale: reliefColors(),
        showscale: false,
        lighting: { ambient: 0.75, diffuse: 0.5, specular: 0.05 },
        contours: { z: { show: true, start: low, end: high, size: (high - low) / LEVELS, color: css("--relief-line"), width: 1 } },
      },
    ],
    layout: {
      margin: { l: 0, r: 0, t: 0, b: 0 },
      dragmode: "turntable",
      uirevision: state.surface.name, // keeps the view while paths come and go
      scene: {
        aspectmode: "manual",
        aspectratio: { x: 1, y: 1, z: 0.7 },
        camera: { eye: { x: -0.95, y: -1.65, z: 1.9 }, center: { x: -0.05, y: 0, z: -0.12 } },
        xaxis: { title: { text: "x" }, range: ends(x), ...edge },
        yaxis: { title: { text: "y" }, range: ends(y), ...edge },
        zaxis: { title: { text: "loss" }, range: [low, high + 2 * lift], ...edge, ...lossTicks() },
      },
    },
    place: (run) => ({
      x: inside(run, column(run.points, 0)),
      y: inside(run, column(run.points, 1)),
      z: inside(run, run.heights.map((height) => height + lift)),
    }),
  };
}

// ---- The table, which is also legend and choice of optimizers ----

const DASHES = {
  solid: "",
  dash: "7 4",
  dot: "2 3",
  dashdot: "7 3 2 3",
  longdash: "12 4",
  longdashdot: "12 3 2 3",
};
const SHAPES = {
  circle: "M24 5a5 5 0 1 0 .01 0z",
  square: "M19.5 5.5h9v9h-9z",
  diamond: "M24 4l6 6-6 6-6-6z",
  "triangle-up": "M24 4l6 11H18z",
  cross: "M22 4h4v4h4v4h-4v4h-4v-4h-4V8h4z",
  x: "M20 4l4 4 4-4 2 2-4 4 4 4-2 2-4-4-4 4-2-2 4-4-4-4z",
  star: "M24 3l2 5h5l-4 3 2 5-5-3-5 3 2-5-4-3h5z",
};

function sample({ color, dash, symbol }) {
  return (
    `<svg viewBox="0 0 48 20" aria-hidden="true">` +
    `<path d="M0 10H48" stroke="${color}" stroke-width="3" stroke-dasharray="${DASHES[dash]}"/>` +
    `<path d="${SHAPES[symbol]}" fill="${color}" stroke="var(--paper)"/></svg>`
  );
}

function drawTable() {
  const rows = chosenRuns().map((run) => {
    const row = document.createElement("tr");
    row.innerHTML =
      `<th scope="row"><label><input type="checkbox">${sample(styleOf(run))}<span class="name"></span> <span class="end"></span></label></th>` +
      `<td></td><td class="place"></td><td class="place"></td><td></td><td></td>`;
    row.querySelector(".name").textContent = run.optimizer;
    row.cells[1].textContent = run.lr;
    const box = row.querySelector("input");
    box.checked = !state.hidden.has(pathName(run));
    box.addEventListener("change", () => {
      state.hidden[box.checked ? "delete" : "add"](pathName(run));
      row.classList.toggle("off", !box.checked);
      drawPanels();
    });
    row.classList.toggle("off", !box.checked);
    return row;
  });
  $("numbers").replaceChildren(...rows);
}

/** Four digits, and no row of zeros before them. */
function numberText(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  return size >= 1e-3 && size < 1e5 ? value.toPrecision(4) : value.toExponential(3);
}

function fillTable() {
  chosenRuns().forEach((run, i) => {
    const k = index(run);
    const cells = $("numbers").rows[i].cells;
    const [x, y] = run.points[k];
    [x, y, run.loss[k], run.gradNorm[k]].forEach((value, j) => {
      cells[j + 2].textContent = value === undefined ? "" : numberText(value);
    });
    cells[0].querySelector(".end").textContent = k === run.loss.length - 1 ? run.ending : "";
  });
}

// ---- Drawing ----

const panels = [new Panel("map", describeMap), new Panel("curves", describeCurves)];
const reliefPanel = new Panel("relief", describeRelief);

function whyNoRelief() {
  if (state.surface.axes.length === 1) return "This surface has one coordinate; the map shows all of it.";
  const canvas = document.createElement("canvas");
  if (!canvas.getContext("webgl2") && !canvas.getContext("webgl")) {
    return "This browser has no WebGL, which the view in three dimensions needs. The map shows the same surface.";
  }
  return "";
}

function drawPanels() {
  const reason = whyNoRelief();
  $("no-relief").textContent = reason;
  $("no-relief").hidden = reason === "";
  $("relief").hidden = reason !== "";
  for (const panel of panels) panel.draw();
  if (reason === "") reliefPanel.draw();
}

function draw() {
  $("formula").textContent = state.surface.formula;
  $("source").textContent = `(${state.surface.source})`;
  $("look-for").textContent = state.surface.lookFor;
  offerChoices();
  drawTable();
  drawPanels();
  show(state.step);
}

function show(step) {
  state.step = Math.max(0, Math.min(data.steps, step));
  $("scrubber").value = state.step;
  $("scrubber").setAttribute("aria-valuetext", `step ${state.step} of ${data.steps}`);
  $("counter").textContent = `step ${state.step} / ${data.steps}`;
  fillTable();
  for (const panel of panels) panel.show();
  if (!$("relief").hidden) reliefPanel.show();
}

// ---- Playing ----

let clock; // { time, step } when the film was started

function play() {
  state.playing = true;
  if (state.step === data.steps) show(0);
  clock = undefined;
  markPlaying();
  requestAnimationFrame(tick);
}

function pause() {
  state.playing = false;
  markPlaying();
}

const toggle = () => (state.playing ? pause() : play());

function markPlaying() {
  $("play").toggleAttribute("data-playing", state.playing);
  $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
  $("counter").setAttribute("aria-live", state.playing ? "off" : "polite"); // nobody wants every frame read out
}

function tick(time) {
  if (!state.playing) return;
  clock ??= { time, step: state.step };
  const step = clock.step + Math.floor(((time - clock.time) / 1000) * state.speed);
  if (step !== state.step) show(step);
  if (state.step === data.steps) return pause();
  requestAnimationFrame(tick);
}

function jump(step) {
  pause();
  show(step);
}

// ---- The reader ----

function fill(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, label]) => new Option(label, value, false, value === chosen)));
}

function offerChoices() {
  fill($("surface"), data.surfaces.map(({ name }) => [name, name]), state.surface.name);
  const several = rates().length > 1 ? [[ALL, "all of them"]] : [];
  fill($("lr"), [[BEST, "best of each"], ...several, ...rates().map((rate) => [String(rate), String(rate)])], state.lr);
}

function listen() {
  $("surface").addEventListener("change", (event) => {
    state.surface = data.surfaces.find(({ name }) => name === event.target.value);
    state.lr = rateNamed(state.lr) ?? BEST;
    remember();
    draw();
  });
  $("lr").addEventListener("change", (event) => {
    state.lr = event.target.value;
    remember();
    draw();
  });
  $("speed").addEventListener("change", (event) => {
    state.speed = Number(event.target.value);
    clock = undefined;
  });
  $("scrubber").addEventListener("input", (event) => jump(Number(event.target.value)));
  const buttons = {
    first: () => jump(0),
    back: () => jump(state.step - 1),
    play: toggle,
    forth: () => jump(state.step + 1),
    last: () => jump(data.steps),
  };
  for (const [id, act] of Object.entries(buttons)) $(id).addEventListener("click", act);
  for (const { element } of panels) onTap(element, toggle);
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", () => {
    choose();
    draw();
  });
  prefersDark.addEventListener("change", drawPanels);
}

/** A press and a release at the same place; plots swallow the click that would follow. */
function onTap(element, act) {
  let pressed;
  element.addEventListener("pointerdown", (event) => {
    pressed = event.button === 0 ? event : undefined;
  });
  document.addEventListener("pointerup", (event) => {
    const moved = pressed ? Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) : Infinity;
    pressed = undefined;
    if (moved < 5) act();
  });
  document.addEventListener("pointercancel", () => (pressed = undefined)); // the finger scrolls
}

/** Keys act wherever the focus is, except on controls that use the same key themselves. */
function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const actions = {
    " ": [toggle, "button, select, input[type=checkbox]"],
    ArrowLeft: [() => jump(state.step - 1), "select, input[type=range]"],
    ArrowRight: [() => jump(state.step + 1), "select, input[type=range]"],
    Home: [() => jump(0), "select, input[type=range]"],
    End: [() => jump(data.steps), "select, input[type=range]"],
  };
  const [act, owners] = actions[event.key] ?? [];
  if (!act || event.target.closest(owners)) return;
  event.preventDefault();
  act();
}

$("scrubber").max = data.steps;
fill($("speed"), SPEEDS.map((speed) => [String(speed), `${speed} steps/s`]), String(state.speed));
choose();
listen();
markPlaying();
draw();

"use strict";

// The walk shows one station at a time and plays its picture. Without this script all stations are below each other,
// each with its whole run.

const SECONDS_OF_A_FILM = 8;
const prefersCalm = matchMedia("(prefers-reduced-motion: reduce)");
const walk = document.getElementById("walk");
const stations = [...walk.querySelectorAll(".station")];
const links = [...walk.querySelectorAll("#stations a")];
const films = stations.map((station) => new Film(station.querySelector(".film")));
let here = 0;

/** A picture that moves. `at` is the step it shows; between two steps a walker is on the line between their places. */
function Film(figure) {
  const { steps, walkers } = JSON.parse(figure.querySelector("script").textContent);
  const lines = figure.querySelectorAll("polyline");
  const dots = figure.querySelectorAll(".walker");
  const losses = figure.querySelectorAll("figcaption output");
  const [button, scrubber, counter] = [".play", "input", ".step"].map((name) => figure.querySelector(name));
  let at = 0;
  let playing = false;
  let last; // time of the last frame

  function show(step) {
    at = Math.max(0, Math.min(steps, step));
    const whole = Math.floor(at);
    walkers.forEach(({ points, loss }, i) => {
      const k = Math.min(whole, points.length - 1);
      const next = points[Math.min(k + 1, points.length - 1)];
      const share = Math.min(at - k, 1);
      const place = points[k].map((value, axis) => value + share * (next[axis] - value));
      lines[i].setAttribute("points", [...points.slice(0, k + 1), place].join(" "));
      dots[i].setAttribute("cx", place[0]);
      dots[i].setAttribute("cy", place[1]);
      losses[i].textContent = `loss ${loss[k]}`;
    });
    scrubber.value = whole;
    scrubber.setAttribute("aria-valuetext", `step ${whole} of ${steps}`);
    counter.textContent = `${whole} / ${steps}`;
  }

  function mark(isPlaying) {
    playing = isPlaying;
    button.textContent = playing ? "Pause" : at === steps ? "Again" : "Play";
  }

  function tick(time) {
    if (!playing) return;
    show(at + (((time - (last ?? time)) / 1000) * steps) / SECONDS_OF_A_FILM);
    last = time;
    if (at === steps) return mark(false);
    requestAnimationFrame(tick);
  }

  this.pause = () => mark(false);
  this.rewind = () => {
    show(0);
    mark(false);
  };
  this.toggle = () => {
    if (playing) return mark(false);
    if (at === steps) show(0);
    if (prefersCalm.matches) {
      show(steps); // whoever wants no motion sees where it leads, and has the slider
      return mark(false);
    }
    last = undefined;
    mark(true);
    requestAnimationFrame(tick);
  };

  button.addEventListener("click", this.toggle);
  figure.querySelector("svg").addEventListener("click", this.toggle);
  scrubber.addEventListener("input", () => {
    show(Number(scrubber.value));
    mark(false);
  });
  this.rewind();
}

function arrive(station) {
  films[here].pause();
  here = station;
  stations.forEach((section, i) => section.classList.toggle("here", i === here));
  links.forEach((link, i) => (i === here ? link.setAttribute("aria-current", "step") : link.removeAttribute("aria-current")));
  films[here].rewind();
  document.getElementById("back").disabled = here === 0;
  document.getElementById("next").disabled = here === stations.length - 1;
}

/** Go so many stations on, and let screen readers follow. */
function go(by) {
  const station = Math.max(0, Math.min(stations.length - 1, here + by));
  if (station === here) return;
  history.pushState(null, "", `#station-${station + 1}`);
  arrive(station);
  stations[here].querySelector("h2").focus({ preventScroll: true });
}

function follow() {
  const wanted = stations.findIndex((section) => `#${section.id}` === location.hash);
  if (wanted >= 0 || location.hash === "") arrive(Math.max(wanted, 0));
}

/** Keys are the walk's while it is in sight, except on controls that use the same key themselves. */
function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const actions = {
    " ": [() => films[here].toggle(), "a, button, summary"],
    ArrowLeft: [() => go(-1), "input"],
    ArrowRight: [() => go(1), "input"],
  };
  const [act, owners] = actions[event.key] ?? [];
  if (!act || event.target.closest(owners) || walk.getBoundingClientRect().bottom < innerHeight / 3) return;
  event.preventDefault();
  act();
}

document.documentElement.classList.add("walking");
document.getElementById("back").addEventListener("click", () => go(-1));
document.getElementById("next").addEventListener("click", () => go(1));
document.addEventListener("keydown", onKey);
addEventListener("hashchange", follow);
addEventListener("popstate", follow);
arrive(0);
follow();

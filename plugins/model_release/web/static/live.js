// Keeps an open page at the present: asks the server for the same page again and changes, in place, only what differs.
// Nothing is rendered here from data: the server escapes, and what it says is parsed as an inert document.
import { draw } from "./charts.js";

const pulse = document.getElementById("pulse");
const announce = document.getElementById("announce");
let tag = null;
let timer = null;

const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });
function relative(date) {
  const seconds = (date.getTime() - Date.now()) / 1000;
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]])
    if (Math.abs(seconds) >= size) return ago.format(Math.trunc(seconds / size), unit);
  return ago.format(Math.trunc(seconds), "second");
}

function tellTimes() {
  for (const element of document.querySelectorAll("time[datetime]")) {
    const date = new Date(element.dateTime);
    if (!Number.isNaN(date.getTime())) element.textContent = relative(date);
  }
}

function alike(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && (old.id || "") === (fresh.id || "");
}

// Makes `old` equal to `fresh` and leaves alone what is equal: focus, open details and scroll positions stay.
function morph(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  if (old.hasAttribute("data-chart")) for (const about of ["every", "url"]) old.dataset[about] = fresh.dataset[about];
  if (old.hasAttribute("data-keep")) return;
  if (old.nodeName === "TIME" && old.dateTime === fresh.dateTime) return;
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== "open" && name !== "hidden") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (["INPUT", "SELECT", "TEXTAREA"].includes(old.nodeName)) return;
  const byId = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const known = child.id ? byId.get(child.id) : null;
    if (known && known.nodeName === child.nodeName) {
      if (known !== place) old.insertBefore(known, place);
      else place = place.nextSibling;
      morph(known, child);
    } else if (place && !place.id && alike(place, child)) {
      const next = place.nextSibling;
      morph(place, child);
      place = next;
    } else {
      old.insertBefore(document.importNode(child, true), place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function say(state, words) {
  pulse.dataset.state = state;
  const says = pulse.querySelector(".says");
  if (says.textContent !== words) says.textContent = words;
}

async function look() {
  try {
    const answer = await fetch(location.href, {
      headers: { Accept: "text/html" },
      cache: "no-cache",
      signal: AbortSignal.timeout(20000),
    });
    if (answer.status === 401) return say("down", "Signed out: reload to sign in");
    if (!answer.ok) throw new Error(String(answer.status));
    const now = answer.headers.get("ETag");
    if (now && now === tag) return say("live", "Live");
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const before = document.querySelector("[data-announce]")?.textContent;
    morph(document.getElementById("main"), fresh.getElementById("main"));
    document.title = fresh.title;
    if (fresh.body.dataset.poll) document.body.dataset.poll = fresh.body.dataset.poll;
    else delete document.body.dataset.poll;
    const after = document.querySelector("[data-announce]")?.textContent;
    if (before !== undefined && after !== before) announce.textContent = after;
    tag = now;
    tellTimes();
    find();
    charts();
    say("live", "Live");
  } catch {
    say("down", "No answer; what is shown may be old");
  }
}

function schedule() {
  clearTimeout(timer);
  const seconds = Number(document.body.dataset.poll);
  if (!seconds) return;
  timer = setTimeout(async () => {
    if (!document.hidden) await look();
    schedule();
  }, seconds * 1000);
}

function charts() {
  for (const element of document.querySelectorAll("[data-chart]")) draw(element);
}

// Filtering of a list, in the page.
function find() {
  const field = document.querySelector("[data-find]");
  if (!field) return;
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of document.querySelectorAll(field.dataset.find)) {
    const fits = words.every((word) => row.dataset.words.toLowerCase().includes(word));
    row.hidden = !fits;
    shown += fits;
  }
  const nothing = document.getElementById("nothing-found");
  if (nothing) nothing.hidden = shown > 0;
}

// Airflow shows this page in a frame that may open no window and not move Airflow's own page. Both are of one origin, so
// a link that leaves is followed from Airflow's page: its own pages in place of this one, others in a tab of their own.
function leave(event) {
  const link = event.target.closest("a[data-leaves]");
  if (!link || document.documentElement.dataset.framed !== "yes") return;
  event.preventDefault();
  const outer = window.parent.document;
  const twin = outer.createElement("a");
  twin.href = link.href;
  if (link.dataset.leaves !== "airflow" || event.ctrlKey || event.metaKey) {
    twin.target = "_blank";
    twin.rel = "noopener noreferrer";
  }
  outer.body.append(twin);
  twin.click();
  twin.remove();
}

async function copy(event) {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

document.addEventListener("click", leave);
document.addEventListener("click", copy);
document.addEventListener("input", (event) => event.target.matches("[data-find]") && find());
document.addEventListener("change", (event) => event.target.matches(".filters select") && event.target.form.requestSubmit());
document.addEventListener("visibilitychange", () => !document.hidden && document.body.dataset.poll && look());
tellTimes();
setInterval(tellTimes, 1000);
charts();
if (document.body.dataset.poll) say("live", "Live");
schedule();

"use strict";
// The evidence page: a gallery, one view per picture, and the reviewer's verdicts. Text from outside (paths, notes)
// only ever becomes text nodes and attribute values; no markup is built from strings.

const settings = JSON.parse(document.getElementById("settings").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const byName = new Map(pictures.map((picture) => [picture.name, picture]));
const $ = (id) => document.getElementById(id);
const PAGE = 60; // cards drawn at a time
const number = new Intl.NumberFormat("en");

// Small helpers -----------------------------------------------------------------------------------------------------

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "vars") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const count = (n, one, many) => `${number.format(n)} ${n === 1 ? one : many}`;
const colour = (n) => settings.colours[(n - 1) % settings.colours.length];
const light = (n) => (colour(n) === "#0072B2" ? " light" : ""); // the one dark colour takes white letters
const fileName = (picture) => picture.path.split(/[\\/]/).pop() || picture.path;
const place = (picture) => (picture.page ? `page ${picture.page}` + (picture.figure ? `, figure ${picture.figure}` : "") : "");
const folderOf = (picture) => picture.path.slice(0, Math.max(0, picture.path.length - fileName(picture).length - 1));
const title = (picture) => fileName(picture) + (picture.page ? ` (${place(picture)})` : "");
const isWrong = (f1) => f1 < settings.missed;
const missed = (picture) => (picture.truth ? picture.truth.instances.filter((t) => isWrong(t.f1)).length : 0);
const falseOnes = (picture) => (picture.truth ? picture.instances.filter((i) => isWrong(i.f1)).length : 0);
const area = (n) => `${number.format(n)} px`;

// The reviewer's verdicts ---------------------------------------------------------------------------------------------

const KEY = `copy-move-verdicts:${settings.run}`;
let verdicts = {};
try {
  verdicts = JSON.parse(localStorage.getItem(KEY)) || {};
} catch (fault) {
  $("storage-notice").hidden = false;
}
const findingKey = (picture, instance) => `${picture.name}/${instance.id}`;
const verdictOf = (picture, instance) => verdicts[findingKey(picture, instance)] || {};

function decide(picture, instance, change) {
  const key = findingKey(picture, instance);
  const next = { ...verdicts[key], ...change, changed: new Date().toISOString() };
  if (next.verdict || next.note) verdicts[key] = next;
  else delete verdicts[key];
  keep();
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(verdicts));
  } catch (fault) {
    $("storage-notice").hidden = false;
  }
  drawCounts();
}

function reviewState(picture) {
  const given = picture.instances.map((instance) => verdictOf(picture, instance).verdict);
  if (!given.length) return "";
  if (given.includes("confirmed")) return given.every(Boolean) ? "confirmed" : "open";
  return given.every((verdict) => verdict === "dismissed") ? "dismissed" : "open";
}

function exported() {
  const findings = [];
  for (const picture of pictures)
    for (const instance of picture.instances) {
      const verdict = verdictOf(picture, instance);
      if (!verdict.verdict && !verdict.note) continue;
      findings.push({
        path: picture.path, page: picture.page, figure: picture.figure, picture: picture.name, finding: instance.id,
        number: instance.number, score: instance.score, area: instance.area,
        verdict: verdict.verdict || null, note: verdict.note || "", changed: verdict.changed,
        evidence: instance.copies.map((copy) => copy.sentence),
      });
    }
  return { run: settings.run, title: settings.title, exported: new Date().toISOString(), findings };
}

function exportVerdicts() {
  const content = exported();
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2) + "\n"], { type: "application/json" }));
  const link = h("a", { href: url, download: `verdicts-${settings.run}.json` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  say(`Exported the verdicts on ${count(content.findings.length, "finding", "findings")}.`);
}

async function importVerdicts(file) {
  try {
    const given = JSON.parse(await file.text());
    const known = new Set(pictures.flatMap((p) => p.instances.map((i) => findingKey(p, i))));
    let taken = 0;
    for (const finding of given.findings) {
      const key = `${finding.picture}/${finding.finding}`;
      if (!known.has(key)) continue;
      const verdict = ["confirmed", "dismissed"].includes(finding.verdict) ? finding.verdict : undefined;
      verdicts[key] = { verdict, note: String(finding.note || ""), changed: String(finding.changed || "") };
      taken += 1;
    }
    keep();
    draw();
    say(`Took over ${taken} of ${count(given.findings.length, "verdict", "verdicts")}; the others belong to findings that are not on this page.`);
  } catch (fault) {
    say("That file does not hold verdicts exported from this page.");
  }
}

const say = (text) => ($("message").textContent = text);

// Summary -------------------------------------------------------------------------------------------------------------

function drawCounts() {
  const findings = pictures.flatMap((p) => p.instances.map((i) => [p, i]));
  const found = pictures.filter((p) => p.instances.length).length;
  const unreadable = pictures.filter((p) => p.verdict === "unreadable").length;
  const examined = pictures.length - unreadable;
  const unproven = findings.filter(([, i]) => !i.copies.length).length;
  const decided = findings.filter(([p, i]) => verdictOf(p, i).verdict).length;
  const confirmed = findings.filter(([p, i]) => verdictOf(p, i).verdict === "confirmed").length;
  const sentence = found
    ? [h("strong", {}, `In ${number.format(found)} of ${count(examined, "picture", "pictures")}`), " regions were found that appear more than once."]
    : [`No repeated region was found in ${count(examined, "picture", "pictures")}.`];
  $("headline").replaceChildren(...sentence);
  const items = [["pictures examined", examined], ["pictures with findings", found], ["findings", findings.length]];
  if (unproven) items.push(["of them without pixel proof", unproven]);
  if (unreadable) items.push(["not readable", unreadable]);
  if (findings.length) items.push(["reviewed", `${decided} of ${findings.length}`]);
  if (confirmed) items.push(["confirmed", confirmed]);
  const scored = pictures.filter((p) => p.truth);
  if (scored.length) {
    const mean = scored.reduce((sum, p) => sum + p.truth.object_f1, 0) / scored.length;
    items.push(["mean oF1", mean.toFixed(3)]);
    items.push(["instances missed", scored.reduce((sum, p) => sum + missed(p), 0)]);
    items.push(["false instances", scored.reduce((sum, p) => sum + falseOnes(p), 0)]);
  }
  $("counts").replaceChildren(
    ...items.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "number" ? number.format(value) : value))));
}

// Outlines over a picture -----------------------------------------------------------------------------------------------

// The drawing over a picture: the mask as a tint, the border of every region, lines from the source to its copies.
function outlines(picture, { regions = false, lines = false, truth = false } = {}) {
  const layer = svg("svg", { class: "outlines", viewBox: `0 0 ${picture.width} ${picture.height}`, "aria-hidden": "true" });
  for (const instance of picture.instances) {
    const own = colour(instance.number);
    const group = svg("g", { "data-finding": instance.number });
    const paths = regions && instance.regions.length ? instance.regions.map((r) => r.outline) : [instance.outline];
    group.append(svg("path", { class: "tint", d: instance.outline, vars: { fill: own } }));
    const kind = instance.copies.length ? "" : " embedding";
    if (lines)
      for (const [from, to] of instance.lines) {
        const [[x1, y1], [x2, y2]] = [instance.regions[from].centre, instance.regions[to].centre];
        const ends = { x1: x1 + 0.5, y1: y1 + 0.5, x2: x2 + 0.5, y2: y2 + 0.5 };
        group.append(svg("line", { class: "halo", ...ends }), svg("line", { ...ends, vars: { stroke: own } }));
      }
    for (const d of paths) group.append(svg("path", { class: "halo", d }), svg("path", { class: `edge-line${kind}`, d, vars: { stroke: own } }));
    layer.append(group);
  }
  if (truth && picture.truth)
    for (const t of picture.truth.instances)
      layer.append(svg("path", { class: "halo", d: t.outline }), svg("path", { class: isWrong(t.f1) ? "truth missed" : "truth", d: t.outline }));
  return layer;
}

function resultText(picture) {
  if (picture.verdict === "unreadable") return "not readable";
  if (!picture.instances.length) return "nothing found";
  const unproven = picture.instances.every((instance) => !instance.copies.length) ? ", unproven" : "";
  return count(picture.instances.length, "finding", "findings") + unproven;
}

function truthText(picture) {
  if (!picture.truth) return "";
  const parts = [`oF1 ${picture.truth.object_f1.toFixed(2)}`];
  if (missed(picture)) parts.push(`${missed(picture)} missed`);
  if (falseOnes(picture)) parts.push(`${falseOnes(picture)} false`);
  return parts.join(", ");
}

// The gallery ---------------------------------------------------------------------------------------------------------

const SHOWS = {
  all: ["all pictures", () => true],
  found: ["with findings", (p) => p.instances.length > 0],
  nothing: ["nothing found", (p) => p.verdict === "nothing found"],
  unreadable: ["not readable", (p) => p.verdict === "unreadable"],
};
const SORTS = {
  score: ["highest score first", (a, b) => b.score - a.score],
  name: ["name", () => 0],
  findings: ["most findings first", (a, b) => b.instances.length - a.instances.length],
  area: ["largest share repeated first", (a, b) => share(b) - share(a)],
};
if (settings.known) {
  SHOWS.missed = ["something missed", (p) => missed(p) > 0];
  SHOWS.false = ["false instances", (p) => falseOnes(p) > 0];
  SORTS.worst = ["worst oF1 first", (a, b) => of1(a) - of1(b)];
}
const of1 = (picture) => (picture.truth ? picture.truth.object_f1 : 2);
const share = (picture) => picture.instances.reduce((sum, i) => sum + i.area, 0) / Math.max(1, picture.width * picture.height || 1);
const collator = new Intl.Collator("en", { numeric: true });
const byTitle = (a, b) =>
  collator.compare(a.path, b.path) || (a.page || 0) - (b.page || 0) || (a.figure || 0) - (b.figure || 0);

// The folders above all pictures say nothing about one of them.
let shared = pictures.length ? folderOf(pictures[0]).split("/") : [];
for (const picture of pictures) {
  const parts = folderOf(picture).split("/");
  const end = shared.findIndex((part, i) => part !== parts[i]);
  if (end >= 0) shared = shared.slice(0, end);
}
const common = shared.length ? shared.join("/").length + 1 : 0;

let list = []; // the pictures that the filters let through, in order
let drawn = 0; // how many of them have a card

function select() {
  const words = $("query").value.toLowerCase().split(/\s+/).filter(Boolean);
  const threshold = Number($("threshold").value);
  const review = $("review").value;
  const shows = SHOWS[$("show").value][1];
  const order = SORTS[$("sort").value][1];
  $("threshold-value").textContent = threshold.toFixed(2);
  list = pictures.filter((picture) => {
    if (!shows(picture) || picture.score < threshold) return false;
    if (review !== "all" && reviewState(picture) !== review) return false;
    const text = `${picture.path} ${place(picture)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  list.sort((a, b) => order(a, b) || byTitle(a, b));
}

function drawGallery() {
  select();
  $("shown").textContent = `${number.format(list.length)} of ${count(pictures.length, "picture", "pictures")} shown`;
  $("gallery").replaceChildren();
  drawn = 0;
  if (list.length) drawMore();
  else $("gallery").append(h("li", { class: "empty" }, "No picture passes these filters. Lower the score or clear the name."));
  $("more").hidden = drawn >= list.length;
}

function drawMore() {
  $("gallery").append(...list.slice(drawn, drawn + PAGE).map(card));
  drawn = Math.min(drawn + PAGE, list.length);
  $("more").hidden = drawn >= list.length;
}

const STATES = { open: "to review", confirmed: "confirmed", dismissed: "dismissed" };

function card(picture) {
  const state = reviewState(picture);
  const where = [place(picture), folderOf(picture).slice(common)].filter(Boolean).join(" · ") || "\u00a0";
  const thumb = picture.thumb
    ? [h("img", { src: picture.thumb, alt: "", loading: "lazy", decoding: "async" }), outlines(picture)]
    : h("span", { class: "broken" }, picture.error);
  return h("li", { class: "card" },
    h("a", { href: `#picture/${picture.name}`, "data-name": picture.name },
      h("div", { class: "thumb" }, thumb),
      h("div", { class: "text" },
        h("span", { class: "name" }, fileName(picture)),
        h("span", { class: "where", title: folderOf(picture) }, where),
        h("span", { class: "result" },
          h("span", { class: picture.instances.length ? "found" : "quiet" }, resultText(picture)),
          picture.instances.length ? h("span", {}, `score ${picture.score.toFixed(2)}`) : null),
        picture.truth ? h("span", { class: "state" }, truthText(picture)) : null,
        state ? h("span", { class: `state ${state}` }, STATES[state]) : null)));
}

// One picture ---------------------------------------------------------------------------------------------------------

const view = { overlay: true, lines: true, grid: false, anomaly: false, truth: true, zoom: 1 };
let current = null;
let timers = [];

function showPicture(picture) {
  stopFlicker();
  current = picture;
  view.zoom = 1;
  if (!list.includes(picture)) select();
  const index = list.indexOf(picture);
  const step = (by) => list[index + by];
  const link = (by, text, label) => h("button", { type: "button", disabled: index < 0 || !step(by), "aria-label": label, onclick: () => go(step(by)) }, text);
  const heading = h("h1", { tabindex: "-1", id: "picture-title" }, title(picture));
  const side = picture.instances.length
    ? h("section", { class: "findings", "aria-label": "Findings" }, picture.instances.map((instance) => finding(picture, instance)))
    : h("section", { class: "reason", "aria-label": "Result" }, nothingFound(picture));
  $("picture-view").replaceChildren(
    h("div", { class: "crumbs" },
      h("a", { href: "#", class: "button" }, "← All pictures"),
      h("nav", { "aria-label": "Pictures" }, link(-1, "← Previous", "Previous picture"),
        h("span", {}, index >= 0 ? `${index + 1} of ${list.length}` : "not in the filter"), link(1, "Next →", "Next picture"))),
    heading,
    h("p", { class: "facts-line" }, factsLine(picture)),
    h("p", { class: "verdict-line" }, verdictLine(picture)),
    h("div", { class: "columns" }, picture.picture ? h("div", { class: "stage-column" }, stage(picture)) : null, side));
  if (!picture.picture) $("picture-view").querySelector(".columns").classList.add("single");
  $("gallery-view").hidden = true;
  $("top").hidden = true;
  $("picture-view").hidden = false;
  document.title = `${title(picture)} – ${settings.title}`;
  window.scrollTo(0, 0);
  heading.focus({ preventScroll: true });
}

function factsLine(picture) {
  const facts = [picture.width ? `${number.format(picture.width)} × ${number.format(picture.height)} px` : null];
  if (picture.box) facts.push(`${place(picture)}, ${picture.box.map(Math.round).join(", ")} pt from the left and top`);
  if (picture.seconds !== undefined) facts.push(`${picture.seconds.toFixed(1)} s`);
  return [facts.filter(Boolean).join(" · "), facts.some(Boolean) ? " · " : "", h("a", { href: picture.uri }, picture.path)];
}

function verdictLine(picture) {
  const parts = [resultText(picture)[0].toUpperCase() + resultText(picture).slice(1)];
  if (picture.instances.length) parts.push(`score ${picture.score.toFixed(2)} of 1`);
  if (picture.truth) parts.push(truthText(picture));
  if (picture.complete === false) parts.push("the time limit ended the search early: there may be more");
  return parts.join(" · ");
}

function nothingFound(picture) {
  if (picture.verdict === "unreadable") return [h("h2", {}, "Not examined"), h("p", {}, picture.error)];
  const said = [h("h2", {}, "Nothing found"), h("p", {}, "No region of this picture was proven to appear a second time. That is no proof that the picture is unaltered: very small, smooth or strongly changed copies can be missed.")];
  if (missed(picture)) said.push(h("p", {}, `Truth: ${count(missed(picture), "instance was", "instances were")} missed (white dashed line).`));
  if (picture.reason) said.push(h("p", {}, picture.reason));
  return said;
}

function stage(picture) {
  const alt = `${title(picture)}: ${resultText(picture)}`;
  const canvas = h("div", { class: "canvas", vars: { "--ratio": picture.width / picture.height } },
    h("img", { src: picture.picture, alt }));
  const map = (source, extra) => h("img", { class: `map ${extra}`, src: source, alt: "", hidden: true, vars: gridExtent(picture) });
  const anomaly = picture.anomaly ? map(picture.anomaly, "") : null;
  const grid = picture.grid ? map(picture.grid, "lines") : null;
  const gridLines = picture.grid ? cellLines(picture) : null;
  fill(canvas, {}, [anomaly, grid, gridLines]);
  const drawing = outlines(picture, { regions: true, lines: true, truth: true });
  canvas.append(drawing, ...tags(picture));

  const apply = () => {
    canvas.classList.toggle("plain", !view.overlay);
    for (const line of drawing.querySelectorAll("line")) line.style.visibility = view.lines && view.overlay ? "" : "hidden";
    if (anomaly) anomaly.hidden = !view.anomaly;
    if (grid) grid.hidden = !view.grid;
    if (gridLines) gridLines.style.display = view.grid ? "" : "none";
    for (const button of switches.querySelectorAll("[data-switch]")) button.setAttribute("aria-pressed", view[button.dataset.switch]);
    for (const button of switches.querySelectorAll("[data-zoom]")) button.setAttribute("aria-pressed", Number(button.dataset.zoom) === view.zoom);
    canvas.style.setProperty("--zoom", view.zoom);
    legend.hidden = !(anomaly && view.anomaly);
  };
  const toggle = (name, text, possible, why) => h("button", {
    type: "button", "data-switch": name, "aria-pressed": "false", disabled: !possible, title: possible ? null : why,
    onclick: () => { view[name] = !view[name]; apply(); },
  }, text);
  const zoom = (value, text) => h("button", { type: "button", "data-zoom": value, "aria-label": `Zoom ${text}`, onclick: () => { view.zoom = value; apply(); } }, text);
  const none = "No model looked at this picture, so there is no map of it";
  const switches = h("div", { class: "switches", role: "toolbar", "aria-label": "What is drawn over the picture" },
    toggle("overlay", "Overlay", picture.instances.length > 0 || picture.truth, "Nothing was found, so there is nothing to draw"),
    toggle("lines", "Lines", picture.instances.some((i) => i.copies.length), "There are no copies to join"),
    toggle("grid", "Cascade grid", Boolean(picture.grid), none),
    toggle("anomaly", "Similarity map", Boolean(picture.anomaly), none),
    h("div", { class: "zoom", role: "group", "aria-label": "Zoom" }, zoom(1, "Fit"), zoom(2, "2×"), zoom(4, "4×")));
  const legend = h("p", { class: "legend", hidden: true }, h("span", {}, "Distance from the picture's mean: 0", h("span", { class: "ramp", "aria-hidden": "true" }), String(picture.anomaly_top)));
  const frame = h("div", { class: "stage", tabindex: "0", role: "region", "aria-label": "Picture, scrolls when enlarged" }, canvas);
  stage.apply = apply;
  stage.locate = (instance) => {
    view.overlay = true;
    view.zoom = 2;
    apply();
    const [x, y] = instance.regions.length ? instance.regions[0].centre : [picture.width / 2, picture.height / 2];
    frame.scrollTo(canvas.offsetWidth * (x / picture.width) - frame.clientWidth / 2, canvas.offsetHeight * (y / picture.height) - frame.clientHeight / 2);
    frame.scrollIntoView({ block: "nearest" });
  };
  stage.highlight = (n) => {
    for (const group of drawing.querySelectorAll("g")) group.classList.toggle("dim", n !== null && group.dataset.finding !== String(n));
  };
  apply();
  const truth = picture.truth && picture.truth.instances.length ? h("p", { class: "legend" }, "White dashed lines: the true instances.") : null;
  return [switches, frame, legend, truth];
}

// The model sees the picture in the upper left corner of a square: its longer side spans the grid, the last cells of
// the shorter side may reach beyond the picture.
const cellSide = (picture) => Math.max(picture.width, picture.height) / Math.max(...picture.cells);
const gridExtent = (picture) => ({
  width: `${((picture.cells[1] * cellSide(picture)) / picture.width) * 100}%`,
  height: `${((picture.cells[0] * cellSide(picture)) / picture.height) * 100}%`,
});

function cellLines(picture) {
  const side = cellSide(picture);
  const marks = [];
  for (let x = side; x < picture.width; x += side) marks.push(`M${x} 0V${picture.height}`);
  for (let y = side; y < picture.height; y += side) marks.push(`M0 ${y}H${picture.width}`);
  return svg("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`, "aria-hidden": "true" },
    svg("path", { d: marks.join(""), fill: "none", stroke: "#fff", "stroke-opacity": ".35", "stroke-width": "1", "vector-effect": "non-scaling-stroke" }));
}

function tags(picture, live = true) {
  return picture.instances.flatMap((instance) => instance.regions.map((region) => {
    const [x, y, w, hgt] = region.box;
    const under = y < 0.06 * picture.height; // no room above
    const attributes = {
      class: `tag${light(instance.number)}${under ? " under" : ""}`,
      vars: { left: `clamp(.9rem, ${((x + w / 2) / picture.width) * 100}%, 100% - .9rem)`, top: `${((under ? y + hgt : y) / picture.height) * 100}%`,
              background: colour(instance.number), "--own": colour(instance.number) },
    };
    if (!live) return h("span", attributes, region.label);
    const show = () => $(`finding-${instance.number}`).scrollIntoView({ block: "start" });
    return h("button", { type: "button", "aria-label": `Region ${region.label}: show finding ${instance.number}`, onclick: show, ...attributes }, region.label);
  }));
}

// One finding and its proof ---------------------------------------------------------------------------------------------

const KINDS = {
  exact: "blocks equal to the bit", keypoints: "matching keypoints", objects: "the same object", dense: "dense matching of pixels",
};

const swatch = (n, text) => h("span", { class: `swatch${light(n)}`, vars: { background: colour(n) } }, text);

function findingHead(picture, instance, tools) {
  const truth = instance.f1 === undefined ? "" : isWrong(instance.f1) ? " · false instance" : ` · F1 ${instance.f1.toFixed(2)}`;
  return h("div", { class: "finding-head" }, swatch(instance.number, instance.number), h("h2", {}, `Finding ${instance.number}`), tools,
    h("span", { class: "score" }, `score ${instance.score.toFixed(2)} · ${area(instance.area)}${truth}`));
}

function finding(picture, instance) {
  const locate = h("button", { type: "button", onclick: () => stage.locate(instance), "aria-label": `Locate finding ${instance.number} in the picture` }, "Locate");
  const body = instance.copies.length
    ? [...instance.copies.map((copy) => proof(picture, instance, copy)), others(instance)]
    : [h("div", { class: "proof" }, h("p", { class: "sentence" }, instance.sentence), picture.reason ? h("p", { class: "facts-line" }, picture.reason) : null)];
  const element = h("section", {
    class: "finding", id: `finding-${instance.number}`, "aria-label": `Finding ${instance.number}`,
    onmouseenter: () => stage.highlight(instance.number), onmouseleave: () => stage.highlight(null),
  }, findingHead(picture, instance, locate), ...body, reviewControls(picture, instance));
  element.classList.toggle("dismissed", verdictOf(picture, instance).verdict === "dismissed");
  return element;
}

function others(instance) {
  if (!instance.others.length) return "";
  return h("details", { class: "measures" }, h("summary", {}, count(instance.others.length, "further pair", "further pairs")),
    instance.others.map((copy) => sentence(instance, copy)));
}

function sentence(instance, copy) {
  const [from, to] = [instance.regions[copy.from].label, instance.regions[copy.to].label];
  return h("p", { class: "sentence" }, h("span", { class: "pair" }, `${from} → ${to}`), ` ${copy.sentence}`);
}

function tile(copy, source, caption, own, alt) {
  const [w, hgt] = copy.size;
  const layer = own ? svg("svg", { class: "outlines", viewBox: `0 0 ${w} ${hgt}`, "aria-hidden": "true" },
    svg("path", { class: "halo", d: copy.compared }), svg("path", { d: copy.compared, vars: { stroke: own } })) : null;
  return h("figure", { class: "tile" },
    h("div", { class: "frame" }, h("div", { class: `inner${Math.max(w, hgt) < 140 ? " small" : ""}`, vars: { "--ratio": w / hgt } }, h("img", { src: source, alt, decoding: "async" }), layer)),
    h("figcaption", {}, caption));
}

function differenceCaption(copy) {
  const same = copy.identical >= 0.9995 ? "Every pixel is equal to the bit."
    : copy.identical >= 0.9 ? `${Math.floor(copy.identical * 100)} % of the pixels are equal to the bit.`
    : copy.median_difference === null ? "" : `Half of the pixels differ by at most ${copy.median_difference} of 255.`;
  return `Difference, ${settings.gain} times stronger; black is equal. ${same}`;
}

function pairTiles(instance, copy) {
  const own = colour(instance.number);
  const [from, to] = [instance.regions[copy.from].label, instance.regions[copy.to].label];
  const turned = Math.abs(copy.rotation) >= 0.5 || copy.mirrored || Math.abs(copy.scale - 1) >= 0.005;
  return [
    tile(copy, copy.source, `${from}, as it is`, own, `Region ${from}`),
    tile(copy, copy.copy, `${to}, ${turned ? "turned back onto " + from : "as it is"}`, own, `Region ${to}, aligned`),
    tile(copy, copy.difference, differenceCaption(copy), null, `Difference of ${from} and ${to}`),
  ];
}

function proof(picture, instance, copy) {
  return h("div", { class: "proof" }, sentence(instance, copy),
    h("div", { class: "tiles" }, ...pairTiles(instance, copy), compare(instance, copy)), measures(copy));
}

function compare(instance, copy) {
  const [from, to] = [instance.regions[copy.from].label, instance.regions[copy.to].label];
  const [w, hgt] = copy.size;
  const frame = h("div", { class: "frame compare" },
    h("div", { class: `inner${Math.max(w, hgt) < 140 ? " small" : ""}`, vars: { "--ratio": w / hgt } },
      h("img", { src: copy.source, alt: `Region ${from}` }), h("img", { class: "over", src: copy.copy, alt: `Region ${to} over it` }), h("span", { class: "edge" })));
  const slide = h("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": `Slide between ${from} and ${to}`,
    oninput: () => frame.style.setProperty("--cut", `${slide.value}%`) });
  let timer = null;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const flicker = h("button", { type: "button", "aria-pressed": "false", title: calm ? "One press, one change" : "Shows the one and the other in turn, once a second", onclick: () => {
    if (calm) {
      frame.classList.add("flicker");
      frame.classList.toggle("off");
      return;
    }
    const on = timer === null;
    flicker.setAttribute("aria-pressed", on);
    frame.classList.toggle("flicker", on);
    if (on) timers.push((timer = setInterval(() => frame.classList.toggle("off"), 500)));
    else { clearInterval(timer); timer = null; }
  } }, "Flicker");
  return h("figure", { class: "tile" }, frame, h("div", { class: "compare-tools" }, slide, flicker));
}

function stopFlicker() {
  timers.forEach(clearInterval);
  timers = [];
}

function measures(copy) {
  const [right, down] = copy.displacement;
  const rows = [
    ["Evidence", KINDS[copy.kind] ? `${KINDS[copy.kind]} (${copy.kind})` : copy.kind],
    ["Agreeing points", number.format(copy.inliers)],
    ["Correlation", copy.correlation.toFixed(3)],
    ["Area compared", area(copy.area)],
    ["Displacement", `${right} px right, ${down} px down`],
    ["Rotation", `${copy.rotation}° counter-clockwise${copy.mirrored ? ", after mirroring left to right" : ""}`],
    ["Scale", copy.scale.toFixed(3)],
    ["Copy's contrast", copy.gain === null ? "too flat to tell" : `× ${copy.gain.toFixed(2)}`],
    ["Copy's brightness", `${copy.offset >= 0 ? "+" : ""}${copy.offset} of 255`],
    ["Pixels equal to the bit", `${Math.floor(copy.identical * 1000) / 10} %`],
    ["Median difference", copy.median_difference === null ? "–" : `${copy.median_difference} of 255`],
    ["Affine matrix", h("code", {}, copy.affine.map((row) => `[${row.join(", ")}]`).join(" "))],
  ];
  return h("details", { class: "measures" }, h("summary", {}, "Measurements"),
    h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

function reviewControls(picture, instance) {
  const choose = (verdict) => () => {
    const given = verdictOf(picture, instance).verdict === verdict ? undefined : verdict;
    decide(picture, instance, { verdict: given });
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.verdict === given);
    $(`finding-${instance.number}`).classList.toggle("dismissed", given === "dismissed");
  };
  const now = verdictOf(picture, instance);
  const button = (verdict, name, style) => h("button", { type: "button", class: style, "data-verdict": verdict, "aria-pressed": String(now.verdict === verdict), onclick: choose(verdict) }, name);
  const buttons = [button("confirmed", "Confirm", "confirm"), button("dismissed", "Dismiss", "dismiss")];
  const note = h("textarea", { class: "note", rows: "1", oninput: () => decide(picture, instance, { note: note.value }) });
  note.value = now.note || "";
  return h("div", { class: "review", role: "group", "aria-label": `Your verdict on finding ${instance.number}` },
    h("div", { class: "buttons" }, buttons), h("label", {}, "Note", note));
}

// Moving about --------------------------------------------------------------------------------------------------------

function go(picture) {
  if (picture) location.hash = `#picture/${picture.name}`;
}

function draw() {
  const match = /^#picture\/(.+)$/.exec(location.hash);
  const picture = match && byName.get(match[1]);
  if (picture) return showPicture(picture);
  stopFlicker();
  const last = current;
  current = null;
  $("picture-view").hidden = true;
  $("picture-view").replaceChildren();
  $("gallery-view").hidden = false;
  $("top").hidden = false;
  document.title = settings.title;
  drawCounts();
  drawGallery();
  if (last) {
    while (drawn < list.length && list.indexOf(last) >= drawn) drawMore();
    const back = document.querySelector(`.card a[data-name="${last.name}"]`);
    if (back) { back.focus({ preventScroll: true }); back.scrollIntoView({ block: "center" }); }
  }
}

document.addEventListener("keydown", (event) => {
  if (!current || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const at = event.target;
  const typing = at.closest("input, textarea, select");
  if (event.key === "Escape") {
    if (typing && at.matches("textarea")) at.blur();
    else location.hash = "#";
    return;
  }
  if (typing) return;
  if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && !(at.matches(".stage") && view.zoom > 1)) {
    const next = list[list.indexOf(current) + (event.key === "ArrowRight" ? 1 : -1)];
    if (next && list.includes(current)) { event.preventDefault(); go(next); }
  } else if (event.key === " " && !at.closest("button, a, summary")) {
    event.preventDefault();
    view.overlay = !view.overlay;
    stage.apply();
  }
});

// Print -----------------------------------------------------------------------------------------------------------------

// On paper: the open picture, or every finding that the filters let through, then the names of the others.
function drawSheets() {
  const chosen = current ? [current] : list.filter((p) => p.instances.length || missed(p));
  const others = current ? [] : list.filter((p) => !chosen.includes(p));
  $("sheets").replaceChildren(...chosen.map(sheet));
  if (others.length)
    $("sheets").append(h("h2", { class: "quiet-title" }, "Without findings"),
      h("ul", { class: "quiet-list" }, others.map((p) => h("li", {}, title(p), p.error ? ` (not readable: ${p.error})` : ""))));
}

function sheet(picture) {
  const canvas = picture.picture ? h("div", { class: "canvas", vars: { "--ratio": picture.width / picture.height } },
    h("img", { src: picture.picture, alt: "" }), outlines(picture, { regions: true, lines: true, truth: true }), ...tags(picture, false)) : null;
  return h("section", { class: "sheet" },
    h("header", {}, h("h2", {}, title(picture)), h("p", { class: "facts-line" }, factsLine(picture)), h("p", { class: "verdict-line" }, verdictLine(picture))),
    canvas,
    picture.instances.length ? null : nothingFound(picture),
    picture.instances.map((instance) => {
      const given = verdictOf(picture, instance);
      const proofs = instance.copies.map((copy) => h("div", { class: "proof" }, sentence(instance, copy), h("div", { class: "tiles" }, ...pairTiles(instance, copy))));
      const said = [given.verdict ? `Reviewer: ${given.verdict}.` : "Reviewer: no verdict yet.", given.note].filter(Boolean).join(" ");
      return h("section", { class: "finding" }, findingHead(picture, instance, null),
        proofs.length ? proofs : h("p", { class: "sentence" }, instance.sentence),
        instance.others.length ? h("p", {}, `${count(instance.others.length, "further pair is", "further pairs are")} listed on the page.`) : null, h("p", { class: "decision" }, said));
    }));
}

async function printPage() {
  drawSheets();
  await Promise.all([...$("sheets").querySelectorAll("img")].map((image) => image.decode().catch(() => null)));
  window.print();
}

// Start -----------------------------------------------------------------------------------------------------------------

for (const [id, options] of [["show", SHOWS], ["sort", SORTS]])
  $(id).append(...Object.entries(options).map(([value, [text]]) => h("option", { value }, text)));
if (settings.known) $("sort").value = "worst";
const top_ = Math.min(1, Math.max(0, ...pictures.map((p) => p.score)));
$("threshold").max = Math.max(0.01, Math.ceil(top_ * 100) / 100);
for (const id of ["query", "threshold"]) $(id).addEventListener("input", drawGallery);
for (const id of ["show", "review", "sort"]) $(id).addEventListener("change", drawGallery);
$("toolbar").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", drawMore);
$("export").addEventListener("click", exportVerdicts);
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", () => { if ($("import-file").files[0]) importVerdicts($("import-file").files[0]); $("import-file").value = ""; });
$("print-button").addEventListener("click", printPage);
new IntersectionObserver((seen) => { if (seen[0].isIntersecting && drawn && drawn < list.length) drawMore(); }, { rootMargin: "800px" }).observe($("more"));
window.addEventListener("hashchange", draw);
window.addEventListener("beforeprint", drawSheets);
window.addEventListener("afterprint", () => $("sheets").replaceChildren());
draw();

"use strict";
// The evidence page: a gallery, one view per image, and the reviewer's verdicts. Text from outside (paths, notes)
// only ever becomes text nodes and attribute values; no markup is built from strings.

const settings = JSON.parse(document.getElementById("settings").textContent);
const images = JSON.parse(document.getElementById("images").textContent);
const byName = new Map(images.map((image) => [image.name, image]));
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
const fileName = (image) => image.path.split(/[\\/]/).pop() || image.path;
const place = (image) => (image.page ? `page ${image.page}` + (image.figure ? `, figure ${image.figure}` : "") : "");
const folderOf = (image) => image.path.slice(0, Math.max(0, image.path.length - fileName(image).length - 1));
const title = (image) => fileName(image) + (image.page ? ` (${place(image)})` : "");
const isWrong = (f1) => f1 < settings.missed;
const missed = (image) => (image.truth ? image.truth.instances.filter((t) => isWrong(t.f1)).length : 0);
const falseOnes = (image) => (image.truth ? image.instances.filter((i) => isWrong(i.f1)).length : 0);
const area = (n) => `${number.format(n)} px`;

// The reviewer's verdicts ---------------------------------------------------------------------------------------------

const KEY = `copy-move-verdicts:${settings.run}`;
let verdicts = {};
try {
  verdicts = JSON.parse(localStorage.getItem(KEY)) || {};
} catch (fault) {
  $("storage-notice").hidden = false;
}
const findingKey = (image, instance) => `${image.name}/${instance.id}`;
const verdictOf = (image, instance) => verdicts[findingKey(image, instance)] || {};

function decide(image, instance, change) {
  const key = findingKey(image, instance);
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

function reviewState(image) {
  const given = image.instances.map((instance) => verdictOf(image, instance).verdict);
  if (!given.length) return "";
  if (given.includes("confirmed")) return given.every(Boolean) ? "confirmed" : "open";
  return given.every((verdict) => verdict === "dismissed") ? "dismissed" : "open";
}

function exported() {
  const findings = [];
  for (const image of images)
    for (const instance of image.instances) {
      const verdict = verdictOf(image, instance);
      if (!verdict.verdict && !verdict.note) continue;
      findings.push({
        path: image.path, page: image.page, figure: image.figure, image: image.name, finding: instance.id,
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
    const known = new Set(images.flatMap((p) => p.instances.map((i) => findingKey(p, i))));
    let taken = 0;
    for (const finding of given.findings) {
      const key = `${finding.image}/${finding.finding}`;
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
  const findings = images.flatMap((p) => p.instances.map((i) => [p, i]));
  const found = images.filter((p) => p.instances.length).length;
  const unreadable = images.filter((p) => p.verdict === "unreadable").length;
  const examined = images.length - unreadable;
  const unproven = findings.filter(([, i]) => !i.copies.length).length;
  const decided = findings.filter(([p, i]) => verdictOf(p, i).verdict).length;
  const confirmed = findings.filter(([p, i]) => verdictOf(p, i).verdict === "confirmed").length;
  const sentence = found
    ? [h("strong", {}, `In ${number.format(found)} of ${count(examined, "image", "images")}`), " regions were found that appear more than once."]
    : [`No repeated region was found in ${count(examined, "image", "images")}.`];
  $("headline").replaceChildren(...sentence);
  const items = [["images examined", examined], ["images with findings", found], ["findings", findings.length]];
  if (unproven) items.push(["of them without pixel proof", unproven]);
  if (unreadable) items.push(["not readable", unreadable]);
  if (findings.length) items.push(["reviewed", `${decided} of ${findings.length}`]);
  if (confirmed) items.push(["confirmed", confirmed]);
  const scored = images.filter((p) => p.truth);
  if (scored.length) {
    const mean = scored.reduce((sum, p) => sum + p.truth.object_f1, 0) / scored.length;
    items.push(["mean oF1", mean.toFixed(3)]);
    items.push(["instances missed", scored.reduce((sum, p) => sum + missed(p), 0)]);
    items.push(["false instances", scored.reduce((sum, p) => sum + falseOnes(p), 0)]);
  }
  $("counts").replaceChildren(
    ...items.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "number" ? number.format(value) : value))));
}

// Outlines over an image -----------------------------------------------------------------------------------------------

// The drawing over an image: the mask as a tint, the border of every region, lines from the source to its copies.
function outlines(image, { regions = false, lines = false, truth = false } = {}) {
  const layer = svg("svg", { class: "outlines", viewBox: `0 0 ${image.width} ${image.height}`, "aria-hidden": "true" });
  for (const instance of image.instances) {
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
  if (truth && image.truth)
    for (const t of image.truth.instances)
      layer.append(svg("path", { class: "halo", d: t.outline }), svg("path", { class: isWrong(t.f1) ? "truth missed" : "truth", d: t.outline }));
  return layer;
}

function resultText(image) {
  if (image.verdict === "unreadable") return "not readable";
  if (!image.instances.length) return "nothing found";
  const unproven = image.instances.every((instance) => !instance.copies.length) ? ", unproven" : "";
  return count(image.instances.length, "finding", "findings") + unproven;
}

function truthText(image) {
  if (!image.truth) return "";
  const parts = [`oF1 ${image.truth.object_f1.toFixed(2)}`];
  if (missed(image)) parts.push(`${missed(image)} missed`);
  if (falseOnes(image)) parts.push(`${falseOnes(image)} false`);
  return parts.join(", ");
}

// The gallery ---------------------------------------------------------------------------------------------------------

const SHOWS = {
  all: ["all images", () => true],
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
const of1 = (image) => (image.truth ? image.truth.object_f1 : 2);
const share = (image) => image.instances.reduce((sum, i) => sum + i.area, 0) / Math.max(1, image.width * image.height || 1);
const collator = new Intl.Collator("en", { numeric: true });
const byTitle = (a, b) =>
  collator.compare(a.path, b.path) || (a.page || 0) - (b.page || 0) || (a.figure || 0) - (b.figure || 0);

// The folders above all images say nothing about one of them.
let shared = images.length ? folderOf(images[0]).split("/") : [];
for (const image of images) {
  const parts = folderOf(image).split("/");
  const end = shared.findIndex((part, i) => part !== parts[i]);
  if (end >= 0) shared = shared.slice(0, end);
}
const common = shared.length ? shared.join("/").length + 1 : 0;

let list = []; // the images that the filters let through, in order
let drawn = 0; // how many of them have a card

function select() {
  const words = $("query").value.toLowerCase().split(/\s+/).filter(Boolean);
  const threshold = Number($("threshold").value);
  const review = $("review").value;
  const shows = SHOWS[$("show").value][1];
  const order = SORTS[$("sort").value][1];
  $("threshold-value").textContent = threshold.toFixed(2);
  list = images.filter((image) => {
    if (!shows(image) || image.score < threshold) return false;
    if (review !== "all" && reviewState(image) !== review) return false;
    const text = `${image.path} ${place(image)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  list.sort((a, b) => order(a, b) || byTitle(a, b));
}

function drawGallery() {
  select();
  $("shown").textContent = `${number.format(list.length)} of ${count(images.length, "image", "images")} shown`;
  $("gallery").replaceChildren();
  drawn = 0;
  if (list.length) drawMore();
  else $("gallery").append(h("li", { class: "empty" }, "No image passes these filters. Lower the score or clear the name."));
  $("more").hidden = drawn >= list.length;
}

function drawMore() {
  $("gallery").append(...list.slice(drawn, drawn + PAGE).map(card));
  drawn = Math.min(drawn + PAGE, list.length);
  $("more").hidden = drawn >= list.length;
}

const STATES = { open: "to review", confirmed: "confirmed", dismissed: "dismissed" };

function card(image) {
  const state = reviewState(image);
  const where = [place(image), folderOf(image).slice(common)].filter(Boolean).join(" · ") || "\u00a0";
  const thumb = image.thumb
    ? [h("img", { src: image.thumb, alt: "", loading: "lazy", decoding: "async" }), outlines(image)]
    : h("span", { class: "broken" }, image.error);
  return h("li", { class: "card" },
    h("a", { href: `#image/${image.name}`, "data-name": image.name },
      h("div", { class: "thumb" }, thumb),
      h("div", { class: "text" },
        h("span", { class: "name" }, fileName(image)),
        h("span", { class: "where", title: folderOf(image) }, where),
        h("span", { class: "result" },
          h("span", { class: image.instances.length ? "found" : "quiet" }, resultText(image)),
          image.instances.length ? h("span", {}, `score ${image.score.toFixed(2)}`) : null),
        image.truth ? h("span", { class: "state" }, truthText(image)) : null,
        state ? h("span", { class: `state ${state}` }, STATES[state]) : null)));
}

// One image ---------------------------------------------------------------------------------------------------------

const view = { overlay: true, lines: true, grid: false, anomaly: false, truth: true, zoom: 1 };
let current = null;
let timers = [];

function showImage(image) {
  stopFlicker();
  current = image;
  view.zoom = 1;
  if (!list.includes(image)) select();
  const index = list.indexOf(image);
  const step = (by) => list[index + by];
  const link = (by, text, label) => h("button", { type: "button", disabled: index < 0 || !step(by), "aria-label": label, onclick: () => go(step(by)) }, text);
  const heading = h("h1", { tabindex: "-1", id: "image-title" }, title(image));
  const side = image.instances.length
    ? h("section", { class: "findings", "aria-label": "Findings" }, image.instances.map((instance) => finding(image, instance)))
    : h("section", { class: "reason", "aria-label": "Result" }, nothingFound(image));
  $("image-view").replaceChildren(
    h("div", { class: "crumbs" },
      h("a", { href: "#", class: "button" }, "← All images"),
      h("nav", { "aria-label": "Images" }, link(-1, "← Previous", "Previous image"),
        h("span", {}, index >= 0 ? `${index + 1} of ${list.length}` : "not in the filter"), link(1, "Next →", "Next image"))),
    heading,
    h("p", { class: "facts-line" }, factsLine(image)),
    h("p", { class: "verdict-line" }, verdictLine(image)),
    h("div", { class: "columns" }, image.image ? h("div", { class: "stage-column" }, stage(image)) : null, side));
  if (!image.image) $("image-view").querySelector(".columns").classList.add("single");
  $("gallery-view").hidden = true;
  $("top").hidden = true;
  $("image-view").hidden = false;
  document.title = `${title(image)} – ${settings.title}`;
  window.scrollTo(0, 0);
  heading.focus({ preventScroll: true });
}

function factsLine(image) {
  const facts = [image.width ? `${number.format(image.width)} × ${number.format(image.height)} px` : null];
  if (image.box) facts.push(`${place(image)}, ${image.box.map(Math.round).join(", ")} pt from the left and top`);
  if (image.seconds !== undefined) facts.push(`${image.seconds.toFixed(1)} s`);
  return [facts.filter(Boolean).join(" · "), facts.some(Boolean) ? " · " : "", h("a", { href: image.uri }, image.path)];
}

function verdictLine(image) {
  const parts = [resultText(image)[0].toUpperCase() + resultText(image).slice(1)];
  if (image.instances.length) parts.push(`score ${image.score.toFixed(2)} of 1`);
  if (image.truth) parts.push(truthText(image));
  if (image.complete === false) parts.push("the time limit ended the search early: there may be more");
  return parts.join(" · ");
}

function nothingFound(image) {
  if (image.verdict === "unreadable") return [h("h2", {}, "Not examined"), h("p", {}, image.error)];
  const said = [h("h2", {}, "Nothing found"), h("p", {}, "No region of this image was proven to appear a second time. That is no proof that the image is unaltered: very small, smooth or strongly changed copies can be missed.")];
  if (missed(image)) said.push(h("p", {}, `Truth: ${count(missed(image), "instance was", "instances were")} missed (white dashed line).`));
  if (image.reason) said.push(h("p", {}, image.reason));
  return said;
}

function stage(image) {
  const alt = `${title(image)}: ${resultText(image)}`;
  const canvas = h("div", { class: "canvas", vars: { "--ratio": image.width / image.height } },
    h("img", { src: image.image, alt }));
  const map = (source, extra) => h("img", { class: `map ${extra}`, src: source, alt: "", hidden: true, vars: gridExtent(image) });
  const anomaly = image.anomaly ? map(image.anomaly, "") : null;
  const grid = image.grid ? map(image.grid, "lines") : null;
  const gridLines = image.grid ? cellLines(image) : null;
  fill(canvas, {}, [anomaly, grid, gridLines]);
  const drawing = outlines(image, { regions: true, lines: true, truth: true });
  canvas.append(drawing, ...tags(image));

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
  const none = "No model looked at this image, so there is no map of it";
  const switches = h("div", { class: "switches", role: "toolbar", "aria-label": "What is drawn over the image" },
    toggle("overlay", "Overlay", image.instances.length > 0 || image.truth, "Nothing was found, so there is nothing to draw"),
    toggle("lines", "Lines", image.instances.some((i) => i.copies.length), "There are no copies to join"),
    toggle("grid", "Cascade grid", Boolean(image.grid), none),
    toggle("anomaly", "Similarity map", Boolean(image.anomaly), none),
    h("div", { class: "zoom", role: "group", "aria-label": "Zoom" }, zoom(1, "Fit"), zoom(2, "2×"), zoom(4, "4×")));
  const legend = h("p", { class: "legend", hidden: true }, h("span", {}, "Distance from the image's mean: 0", h("span", { class: "ramp", "aria-hidden": "true" }), String(image.anomaly_top)));
  const frame = h("div", { class: "stage", tabindex: "0", role: "region", "aria-label": "Image, scrolls when enlarged" }, canvas);
  stage.apply = apply;
  stage.locate = (instance) => {
    view.overlay = true;
    view.zoom = 2;
    apply();
    const [x, y] = instance.regions.length ? instance.regions[0].centre : [image.width / 2, image.height / 2];
    frame.scrollTo(canvas.offsetWidth * (x / image.width) - frame.clientWidth / 2, canvas.offsetHeight * (y / image.height) - frame.clientHeight / 2);
    frame.scrollIntoView({ block: "nearest" });
  };
  stage.highlight = (n) => {
    for (const group of drawing.querySelectorAll("g")) group.classList.toggle("dim", n !== null && group.dataset.finding !== String(n));
  };
  apply();
  const truth = image.truth && image.truth.instances.length ? h("p", { class: "legend" }, "White dashed lines: the true instances.") : null;
  return [switches, frame, legend, truth];
}

// The model sees the image in the upper left corner of a square: its longer side spans the grid, the last cells of
// the shorter side may reach beyond the image.
const cellSide = (image) => Math.max(image.width, image.height) / Math.max(...image.cells);
const gridExtent = (image) => ({
  width: `${((image.cells[1] * cellSide(image)) / image.width) * 100}%`,
  height: `${((image.cells[0] * cellSide(image)) / image.height) * 100}%`,
});

function cellLines(image) {
  const side = cellSide(image);
  const marks = [];
  for (let x = side; x < image.width; x += side) marks.push(`M${x} 0V${image.height}`);
  for (let y = side; y < image.height; y += side) marks.push(`M0 ${y}H${image.width}`);
  return svg("svg", { viewBox: `0 0 ${image.width} ${image.height}`, "aria-hidden": "true" },
    svg("path", { d: marks.join(""), fill: "none", stroke: "#fff", "stroke-opacity": ".35", "stroke-width": "1", "vector-effect": "non-scaling-stroke" }));
}

function tags(image, live = true) {
  return image.instances.flatMap((instance) => instance.regions.map((region) => {
    const [x, y, w, hgt] = region.box;
    const under = y < 0.06 * image.height; // no room above
    const attributes = {
      class: `tag${light(instance.number)}${under ? " under" : ""}`,
      vars: { left: `clamp(.9rem, ${((x + w / 2) / image.width) * 100}%, 100% - .9rem)`, top: `${((under ? y + hgt : y) / image.height) * 100}%`,
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

function findingHead(image, instance, tools) {
  const truth = instance.f1 === undefined ? "" : isWrong(instance.f1) ? " · false instance" : ` · F1 ${instance.f1.toFixed(2)}`;
  return h("div", { class: "finding-head" }, swatch(instance.number, instance.number), h("h2", {}, `Finding ${instance.number}`), tools,
    h("span", { class: "score" }, `score ${instance.score.toFixed(2)} · ${area(instance.area)}${truth}`));
}

function finding(image, instance) {
  const locate = h("button", { type: "button", onclick: () => stage.locate(instance), "aria-label": `Locate finding ${instance.number} in the image` }, "Locate");
  const body = instance.copies.length
    ? [...instance.copies.map((copy) => proof(image, instance, copy)), others(instance)]
    : [h("div", { class: "proof" }, h("p", { class: "sentence" }, instance.sentence), image.reason ? h("p", { class: "facts-line" }, image.reason) : null)];
  const element = h("section", {
    class: "finding", id: `finding-${instance.number}`, "aria-label": `Finding ${instance.number}`,
    onmouseenter: () => stage.highlight(instance.number), onmouseleave: () => stage.highlight(null),
  }, findingHead(image, instance, locate), ...body, reviewControls(image, instance));
  element.classList.toggle("dismissed", verdictOf(image, instance).verdict === "dismissed");
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

function proof(image, instance, copy) {
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

function reviewControls(image, instance) {
  const choose = (verdict) => () => {
    const given = verdictOf(image, instance).verdict === verdict ? undefined : verdict;
    decide(image, instance, { verdict: given });
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.verdict === given);
    $(`finding-${instance.number}`).classList.toggle("dismissed", given === "dismissed");
  };
  const now = verdictOf(image, instance);
  const button = (verdict, name, style) => h("button", { type: "button", class: style, "data-verdict": verdict, "aria-pressed": String(now.verdict === verdict), onclick: choose(verdict) }, name);
  const buttons = [button("confirmed", "Confirm", "confirm"), button("dismissed", "Dismiss", "dismiss")];
  const note = h("textarea", { class: "note", rows: "1", oninput: () => decide(image, instance, { note: note.value }) });
  note.value = now.note || "";
  return h("div", { class: "review", role: "group", "aria-label": `Your verdict on finding ${instance.number}` },
    h("div", { class: "buttons" }, buttons), h("label", {}, "Note", note));
}

// Moving about --------------------------------------------------------------------------------------------------------

function go(image) {
  if (image) location.hash = `#image/${image.name}`;
}

function draw() {
  const match = /^#image\/(.+)$/.exec(location.hash);
  const image = match && byName.get(match[1]);
  if (image) return showImage(image);
  stopFlicker();
  const last = current;
  current = null;
  $("image-view").hidden = true;
  $("image-view").replaceChildren();
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

// On paper: the open image, or every finding that the filters let through, then the names of the others.
function drawSheets() {
  const chosen = current ? [current] : list.filter((p) => p.instances.length || missed(p));
  const others = current ? [] : list.filter((p) => !chosen.includes(p));
  $("sheets").replaceChildren(...chosen.map(sheet));
  if (others.length)
    $("sheets").append(h("h2", { class: "quiet-title" }, "Without findings"),
      h("ul", { class: "quiet-list" }, others.map((p) => h("li", {}, title(p), p.error ? ` (not readable: ${p.error})` : ""))));
}

function sheet(image) {
  const canvas = image.image ? h("div", { class: "canvas", vars: { "--ratio": image.width / image.height } },
    h("img", { src: image.image, alt: "" }), outlines(image, { regions: true, lines: true, truth: true }), ...tags(image, false)) : null;
  return h("section", { class: "sheet" },
    h("header", {}, h("h2", {}, title(image)), h("p", { class: "facts-line" }, factsLine(image)), h("p", { class: "verdict-line" }, verdictLine(image))),
    canvas,
    image.instances.length ? null : nothingFound(image),
    image.instances.map((instance) => {
      const given = verdictOf(image, instance);
      const proofs = instance.copies.map((copy) => h("div", { class: "proof" }, sentence(instance, copy), h("div", { class: "tiles" }, ...pairTiles(instance, copy))));
      const said = [given.verdict ? `Reviewer: ${given.verdict}.` : "Reviewer: no verdict yet.", given.note].filter(Boolean).join(" ");
      return h("section", { class: "finding" }, findingHead(image, instance, null),
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
const top_ = Math.min(1, Math.max(0, ...images.map((p) => p.score)));
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

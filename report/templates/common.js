"use strict";
// What all parts of the page use: its data, elements, numbers, and an image in words and outlines.
// Text from outside (paths, notes) only ever becomes text nodes and attribute values: no markup is built from strings.

const settings = JSON.parse(document.getElementById("settings").textContent);
const images = JSON.parse(document.getElementById("images").textContent);
const byName = new Map(images.map((image) => [image.name, image]));

// Elements --------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

// Sets attributes, event listeners (onclick, ...) and CSS properties (vars), and appends the children.
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

// Numbers and names -----------------------------------------------------------------------------------------------

const number = new Intl.NumberFormat("en");
const count = (n, one, many) => `${number.format(n)} ${n === 1 ? one : many}`;
const area = (n) => `${number.format(n)} px`;
const capitalized = (text) => text[0].toUpperCase() + text.slice(1);
const colour = (n) => settings.colours[(n - 1) % settings.colours.length];
const light = (n) => (colour(n) === "#0072B2" ? " light" : ""); // white letters on the one dark colour
const fileName = (image) => image.path.split(/[\\/]/).pop() || image.path;
const folderOf = (image) => image.path.slice(0, Math.max(0, image.path.length - fileName(image).length - 1));
// "Figure 3, page 7" where the document labels it, else "page 7, figure 2"; before it the part of the file.
const place = (image) => {
  const page = image.page ? `page ${image.page}` : "";
  const figure = image.figure ? `figure ${image.figure}` : "";
  const words = [image.part, ...(image.label ? [image.label, page] : [page, figure]), image.hidden ? "hidden: not shown to a reader" : ""];
  return words.filter(Boolean).join(", ");
};
const title = (image) => fileName(image) + (place(image) ? ` (${place(image)})` : "");

// An image in words -----------------------------------------------------------------------------------------------

const isWrong = (f1) => f1 < settings.missed_f1;
const missed = (image) => (image.truth ? image.truth.instances.filter((t) => isWrong(t.f1)).length : 0);
const falseOnes = (image) => (image.truth ? image.instances.filter((i) => isWrong(i.f1)).length : 0);

function resultText(image) {
  if (image.verdict === "error") return "could not be examined";
  if (image.verdict === "clean") return image.searched === 0 ? "not searched: drawn" : "nothing found";
  const modelOnly = image.instances.every((instance) => !instance.copies.length) ? ", by the model only" : "";
  return count(image.instances.length, "finding", "findings") + modelOnly;
}

function truthText(image) {
  if (!image.truth) return "";
  const parts = [`oF1 ${image.truth.object_f1.toFixed(2)}`];
  if (missed(image)) parts.push(`${missed(image)} missed`);
  if (falseOnes(image)) parts.push(`${falseOnes(image)} false`);
  return parts.join(", ");
}

function factsLine(image) {
  const facts = [];
  if (image.width) facts.push(`${number.format(image.width)} × ${number.format(image.height)} px`);
  if (image.box) {
    const [left, top, right, bottom] = image.box.map(Math.round);
    facts.push(`${place(image)}: ${left} to ${right} pt from the left, ${top} to ${bottom} pt from the top`);
  }
  if (image.caption) facts.push(image.caption);
  if (image.seconds !== undefined) facts.push(`examined in ${image.seconds.toFixed(1)} s`);
  return [facts.join(" · "), facts.length ? " · " : "", h("a", { href: image.uri }, image.path)];
}

function verdictLine(image) {
  const parts = [capitalized(resultText(image))];
  if (image.instances.length) parts.push(`score ${image.score.toFixed(2)} out of 1`);
  if (image.truth) parts.push(truthText(image));
  if (image.complete === false) parts.push("the search ran out of time, so it may have missed copies");
  if (image.searched < 1) parts.push(`copies were sought in ${Math.round(100 * image.searched)} % of the image: the rest is drawn, text or ground`);
  return parts.join(" · ");
}

function nothingFound(image) {
  if (image.verdict === "error") return [h("h2", {}, "Could not be examined"), h("p", {}, image.error)];
  if (image.searched === 0) return [h("h2", {}, "Not searched"), h("p", {}, "This image seems to hold only drawings, text or even ground, in which things repeat by their nature. Nothing was sought here; run again with --content all to search it.")];
  const text = [h("h2", {}, "Nothing found"), h("p", {}, "No region of this image was found a second time. This does not prove that the image is unaltered: the search can miss copies that are very small, smooth or strongly changed.")];
  if (missed(image)) text.push(h("p", {}, `According to the ground truth, ${count(missed(image), "instance was", "instances were")} missed (dashed white outlines).`));
  if (image.reason) text.push(h("p", {}, image.reason));
  return text;
}

// Outlines over an image ------------------------------------------------------------------------------------------

// The mask of every instance as a tint, the borders of its regions, and lines from the source to its copies.
function outlines(image, { regions = false, lines = false, truth = false } = {}) {
  const layer = svg("svg", { class: "outlines", viewBox: `0 0 ${image.width} ${image.height}`, "aria-hidden": "true" });
  for (const instance of image.instances) {
    const own = colour(instance.number);
    const group = svg("g", { "data-finding": instance.number });
    const paths = regions && instance.regions.length ? instance.regions.map((r) => r.outline) : [instance.outline];
    group.append(svg("path", { class: "tint", d: instance.outline, vars: { fill: own } }));
    const kind = instance.copies.length ? null : "embedding";
    if (lines)
      for (const [from, to] of instance.lines) {
        const [[x1, y1], [x2, y2]] = [instance.regions[from].centre, instance.regions[to].centre];
        const ends = { x1: x1 + 0.5, y1: y1 + 0.5, x2: x2 + 0.5, y2: y2 + 0.5 };
        group.append(svg("line", { class: "halo", ...ends }), svg("line", { ...ends, vars: { stroke: own } }));
      }
    for (const d of paths) group.append(svg("path", { class: "halo", d }), svg("path", { class: kind, d, vars: { stroke: own } }));
    layer.append(group);
  }
  if (truth && image.truth)
    for (const t of image.truth.instances)
      layer.append(svg("path", { class: "halo", d: t.outline }), svg("path", { class: isWrong(t.f1) ? "truth missed" : "truth", d: t.outline }));
  return layer;
}

// The labels 1a, 1b, ... at the regions; as buttons they lead to the finding.
function tags(image, { buttons = true } = {}) {
  return image.instances.flatMap((instance) => instance.regions.map((region) => {
    const [x, y, w, hgt] = region.box;
    const under = y < 0.06 * image.height; // no room above the region
    const attributes = {
      class: `tag${light(instance.number)}${under ? " under" : ""}`,
      vars: { left: `clamp(.9rem, ${((x + w / 2) / image.width) * 100}%, 100% - .9rem)`, top: `${((under ? y + hgt : y) / image.height) * 100}%`,
              background: colour(instance.number), "--own": colour(instance.number) },
    };
    if (!buttons) return h("span", attributes, region.label);
    const show = () => $(`finding-${instance.number}`).scrollIntoView({ block: "start" });
    return h("button", { type: "button", "aria-label": `Region ${region.label}: show finding ${instance.number}`, onclick: show, ...attributes }, region.label);
  }));
}

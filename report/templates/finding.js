// One finding: its copies aligned with their source, the measurements, and the reviewer's controls.

// How the search found a copy, and what its support counts.
const KINDS = {
  exact: ["identical blocks of pixels", "pixels in identical blocks"],
  keypoints: ["matching keypoints", "matching keypoints"],
  objects: ["matching objects", "matching points"],
  dense: ["dense matching of pixels", "matching points"],
};
let timers = []; // of flickering comparisons

const swatch = (n, text) => h("span", { class: `swatch${light(n)}`, vars: { background: colour(n) } }, text);
const labels = (instance, copy) => [instance.regions[copy.from].label, instance.regions[copy.to].label];

function finding(image, instance) {
  const locate = h("button", { type: "button", onclick: () => stage.locate(instance), "aria-label": `Locate finding ${instance.number} in the image` }, "Locate");
  const body = instance.copies.length
    ? [...instance.copies.map((copy) => proof(instance, copy)), others(instance)]
    : [h("div", { class: "proof" }, h("p", { class: "sentence" }, instance.sentence), image.reason ? h("p", { class: "facts-line" }, image.reason) : null)];
  const element = h("section", {
    class: "finding", id: `finding-${instance.number}`, "aria-label": `Finding ${instance.number}`,
    onmouseenter: () => stage.highlight(instance.number), onmouseleave: () => stage.highlight(null),
  }, findingHead(instance, locate), ...body, reviewControls(image, instance));
  element.classList.toggle("dismissed", verdictOf(image, instance).verdict === "dismissed");
  return element;
}

function findingHead(instance, tools) {
  const truth = instance.f1 === undefined ? "" : isWrong(instance.f1) ? " · false instance" : ` · F1 ${instance.f1.toFixed(2)}`;
  return h("div", { class: "finding-head" }, swatch(instance.number, instance.number), h("h2", {}, `Finding ${instance.number}`), tools,
    h("span", { class: "score" }, `score ${instance.score.toFixed(2)} · ${area(instance.area)}${truth}`));
}

function others(instance) {
  if (!instance.others.length) return "";
  return h("details", { class: "measures" }, h("summary", {}, count(instance.others.length, "further pair", "further pairs")),
    instance.others.map((copy) => sentence(instance, copy)));
}

// A copy and its proof --------------------------------------------------------------------------------------------

function proof(instance, copy) {
  return h("div", { class: "proof" }, sentence(instance, copy),
    h("div", { class: "tiles" }, ...pairTiles(instance, copy), compare(instance, copy)), measures(copy));
}

function sentence(instance, copy) {
  return h("p", { class: "sentence" }, h("span", { class: "pair" }, labels(instance, copy).join(" → ")), ` ${copy.sentence}`);
}

// A cut-out at its natural proportions; small ones show their pixels.
function cutOut(copy, ...layers) {
  const [w, hgt] = copy.size;
  return h("div", { class: `inner${Math.max(w, hgt) < 140 ? " small" : ""}`, vars: { "--ratio": w / hgt } }, ...layers);
}

function tile(copy, source, caption, own, alt) {
  const layer = own ? svg("svg", { class: "outlines", viewBox: `0 0 ${copy.size.join(" ")}`, "aria-hidden": "true" },
    svg("path", { class: "halo", d: copy.compared }), svg("path", { d: copy.compared, vars: { stroke: own } })) : null;
  return h("figure", { class: "tile" },
    h("div", { class: "frame" }, cutOut(copy, h("img", { src: source, alt, decoding: "async" }), layer)), h("figcaption", {}, caption));
}

// What was done to the copy so that it lies on its source.
function alignmentText(copy, from) {
  const changes = [Math.abs(copy.rotation) >= 0.5 && "rotated", copy.mirrored && "mirrored", Math.abs(copy.scale - 1) >= 0.005 && "scaled"].filter(Boolean);
  return changes.length ? `${changes.join(" and ")} back to match ${from}` : "as in the image";
}

function pairTiles(instance, copy) {
  const own = colour(instance.number);
  const [from, to] = labels(instance, copy);
  return [
    tile(copy, copy.source, `${from}, as in the image`, own, `Region ${from}`),
    tile(copy, copy.copy, `${to}, ${alignmentText(copy, from)}`, own, `Region ${to}, aligned`),
    tile(copy, copy.difference, differenceCaption(copy), null, `Difference of ${from} and ${to}`),
  ];
}

function differenceCaption(copy) {
  const same = copy.identical >= 0.9995 ? "Inside the regions all pixels are identical."
    : copy.identical >= 0.9 ? `${Math.floor(copy.identical * 100)} % of the pixels inside the regions are identical.`
    : copy.median_difference === null ? "" : `Half of the pixels inside the regions differ by at most ${copy.median_difference} of 255.`;
  return `Difference after matching brightness and contrast, made ${settings.difference_gain} times brighter; black is equal. ${same}`;
}

function compare(instance, copy) {
  const [from, to] = labels(instance, copy);
  const frame = h("div", { class: "frame compare" }, cutOut(copy,
    h("img", { src: copy.source, alt: `Region ${from}` }), h("img", { class: "over", src: copy.copy, alt: `Region ${to} over it` }), h("span", { class: "edge" })));
  const slide = h("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": `Slide between ${from} and ${to}`,
    oninput: () => frame.style.setProperty("--cut", `${slide.value}%`) });
  return h("figure", { class: "tile" }, frame, h("div", { class: "compare-tools" }, slide, flickerButton(frame, from, to)),
    h("figcaption", {}, `${from} left of the line, ${to} right of it`));
}

function flickerButton(frame, from, to) {
  let timer = null;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const help = calm ? `Each press swaps ${from} and ${to}` : `Shows ${from} and ${to} in turn, half a second each`;
  const press = () => {
    if (calm) {
      frame.classList.add("flicker");
      frame.classList.toggle("off");
      return;
    }
    const on = timer === null;
    button.setAttribute("aria-pressed", on);
    frame.classList.toggle("flicker", on);
    if (on) timers.push((timer = setInterval(() => frame.classList.toggle("off"), 500)));
    else { clearInterval(timer); timer = null; }
  };
  const button = h("button", { type: "button", "aria-pressed": "false", title: help, onclick: press }, "Flicker");
  return button;
}

function stopFlicker() {
  timers.forEach(clearInterval);
  timers = [];
}

// Measurements ----------------------------------------------------------------------------------------------------

function displacementText(copy) {
  const [right, down] = copy.displacement;
  const part = (value, positive, negative) => `${number.format(Math.abs(value))} px ${value < 0 ? negative : positive}`;
  return `${part(right, "right", "left")}, ${part(down, "down", "up")}`;
}

function rotationText(copy) {
  const direction = copy.rotation < 0 ? " clockwise" : copy.rotation > 0 ? " counter-clockwise" : "";
  return `${Math.abs(copy.rotation)}°${direction}${copy.mirrored ? ", after mirroring left to right" : ""}`;
}

function brightnessText(copy) {
  return copy.offset ? `${Math.abs(copy.offset)} of 255 ${copy.offset < 0 ? "darker" : "brighter"} than the source` : "that of the source";
}

function measures(copy) {
  const [foundBy, support] = KINDS[copy.kind] || [copy.kind, "matches"];
  const rows = [
    ["Found by", foundBy],
    ["Support", `${number.format(copy.support)} ${support}`],
    ["Correlation (NCC)", copy.ncc.toFixed(3)],
    ["Area compared", area(copy.area)],
    ["Displacement", displacementText(copy)],
    ["Rotation", rotationText(copy)],
    ["Scale", copy.scale.toFixed(3)],
    ["Contrast of the copy", copy.gain === null ? "too flat to tell" : `${copy.gain.toFixed(2)} times that of the source`],
    ["Brightness of the copy", brightnessText(copy)],
    ["Identical pixels", `${Math.floor(copy.identical * 1000) / 10} %`],
    ["Median difference", copy.median_difference === null ? "–" : `${copy.median_difference} of 255`],
    ["Affine matrix", h("code", {}, copy.affine.map((row) => `[${row.join(", ")}]`).join(" "))],
  ];
  return h("details", { class: "measures" }, h("summary", {}, "Measurements"),
    h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

// Review ----------------------------------------------------------------------------------------------------------

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

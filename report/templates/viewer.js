// One open image: its heading, the image with what is drawn over it, and beside it the findings (see finding.js).

const view = { overlay: true, lines: true, grid: false, anomaly: false, zoom: 1 }; // what is drawn over the open image
let current = null; // the open image; null while the gallery is shown
let stage = null; // the open image on the screen, see makeStage

function showImage(image) {
  stopFlicker();
  current = image;
  view.zoom = 1;
  if (!list.includes(image)) select();
  const heading = h("h1", { tabindex: "-1", id: "image-title" }, title(image));
  const side = image.instances.length
    ? h("section", { class: "findings", "aria-label": "Findings" }, image.instances.map((instance) => finding(image, instance)))
    : h("section", { class: "reason", "aria-label": "Result" }, nothingFound(image));
  stage = image.image ? makeStage(image) : null;
  $("image-view").replaceChildren(
    navigation(image),
    heading,
    h("p", { class: "facts-line" }, factsLine(image)),
    h("p", { class: "verdict-line" }, verdictLine(image)),
    h("div", { class: stage ? "columns" : "columns single" }, stage ? h("div", { class: "stage-column" }, stage.elements) : null, side));
  if (stage) stage.apply();
  $("gallery-view").hidden = true;
  $("top").hidden = true;
  $("image-view").hidden = false;
  document.title = `${title(image)} – ${settings.title}`;
  window.scrollTo(0, 0);
  heading.focus({ preventScroll: true });
}

function navigation(image) {
  const index = list.indexOf(image);
  const button = (by, text, label) => {
    const other = index < 0 ? undefined : list[index + by];
    return h("button", { type: "button", disabled: !other, "aria-label": label, onclick: () => go(other) }, text);
  };
  return h("div", { class: "crumbs" },
    h("a", { href: "#", class: "button" }, "← All images"),
    h("nav", { "aria-label": "Images" }, button(-1, "← Previous", "Previous image"),
      h("span", {}, index >= 0 ? `${index + 1} of ${list.length}` : "hidden by the filters"), button(1, "Next →", "Next image")));
}

// The image on the screen: `elements` for the page; `apply` draws what `view` asks for; `locate` enlarges a finding;
// `highlight` dims all findings but one.
function makeStage(image) {
  const drawing = outlines(image, { regions: true, lines: true, truth: true });
  const map = (name) => (image[name] ? h("img", { class: `map ${name}`, src: image[name], alt: "", vars: gridExtent(image) }) : null);
  const maps = { grid: map("grid"), anomaly: map("anomaly"), cells: image.grid ? cellLines(image) : null };
  const canvas = h("div", { class: "canvas", vars: { "--ratio": image.width / image.height } },
    h("img", { src: image.image, alt: `${title(image)}: ${resultText(image)}` }), maps.anomaly, maps.grid, maps.cells, drawing, tags(image));
  const frame = h("div", { class: "stage", tabindex: "0", role: "region", "aria-label": "Image; it scrolls when enlarged" }, canvas);
  const legend = h("p", { class: "legend" },
    h("span", {}, "Cosine distance of each cell from the image's mean: 0", h("span", { class: "ramp", "aria-hidden": "true" }), String(image.anomaly_top)));
  const truth = image.truth && image.truth.instances.length ? h("p", { class: "legend" }, "Dashed white outlines: the true instances.") : null;

  const apply = () => {
    canvas.classList.toggle("plain", !view.overlay);
    for (const line of drawing.querySelectorAll("line")) line.style.visibility = view.lines && view.overlay ? "" : "hidden";
    if (maps.anomaly) maps.anomaly.hidden = !view.anomaly;
    if (maps.grid) maps.grid.hidden = !view.grid;
    if (maps.cells) maps.cells.style.display = view.grid ? "" : "none";
    for (const button of switches.querySelectorAll("[data-switch]")) button.setAttribute("aria-pressed", view[button.dataset.switch]);
    for (const button of switches.querySelectorAll("[data-zoom]")) button.setAttribute("aria-pressed", Number(button.dataset.zoom) === view.zoom);
    canvas.style.setProperty("--zoom", view.zoom);
    legend.hidden = !(maps.anomaly && view.anomaly);
  };
  const locate = (instance) => {
    view.overlay = true;
    view.zoom = 2;
    apply();
    const [x, y] = instance.regions.length ? instance.regions[0].centre : [image.width / 2, image.height / 2];
    frame.scrollTo(canvas.offsetWidth * (x / image.width) - frame.clientWidth / 2, canvas.offsetHeight * (y / image.height) - frame.clientHeight / 2);
    frame.scrollIntoView({ block: "nearest" });
  };
  const highlight = (n) => {
    for (const group of drawing.querySelectorAll("g")) group.classList.toggle("dim", n !== null && group.dataset.finding !== String(n));
  };
  const switches = makeSwitches(image, apply);
  return { elements: [switches, frame, legend, truth], apply, locate, highlight };
}

function makeSwitches(image, apply) {
  const toggle = (name, text, possible, help, otherwise) => h("button", {
    type: "button", "data-switch": name, "aria-pressed": "false", disabled: !possible, title: possible ? help : otherwise,
    onclick: () => { view[name] = !view[name]; apply(); },
  }, text);
  const zoom = (value, text) => h("button", { type: "button", "data-zoom": value, "aria-label": `Zoom ${text}`, onclick: () => { view.zoom = value; apply(); } }, text);
  const noModel = "This image was examined without a trained model";
  return h("div", { class: "switches", role: "toolbar", "aria-label": "What is drawn over the image" },
    toggle("overlay", "Overlay", image.instances.length > 0 || image.truth, "Outlines of the regions", "There is nothing to draw: nothing was found"),
    toggle("lines", "Lines", image.instances.some((i) => i.copies.length), "Lines from the regions to their copies", "There are no copies to connect"),
    toggle("grid", "Model grid", Boolean(image.grid), "The cells that the trained model marks as copied", noModel),
    toggle("anomaly", "Anomaly map", Boolean(image.anomaly), "How much each cell differs from the rest of the image, as the trained model sees it", noModel),
    h("div", { class: "zoom", role: "group", "aria-label": "Zoom" }, zoom(1, "Fit"), zoom(2, "2×"), zoom(4, "4×")));
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

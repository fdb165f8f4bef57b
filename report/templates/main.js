// The page as a whole: moving between gallery and images, the keyboard, printing, and the start.

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
  } else if (event.key === " " && stage && !at.closest("button, a, summary")) {
    event.preventDefault();
    view.overlay = !view.overlay;
    stage.apply();
  }
});

// Print -----------------------------------------------------------------------------------------------------------

// On paper: the open image, or every finding that the filters let through, then the names of the other images.
function drawSheets() {
  const chosen = current ? [current] : list.filter((p) => p.instances.length || missed(p));
  const others = current ? [] : list.filter((p) => !chosen.includes(p));
  $("sheets").replaceChildren(...chosen.map(sheet));
  if (others.length)
    $("sheets").append(h("h2", { class: "quiet-title" }, "Images without findings"),
      h("ul", { class: "quiet-list" }, others.map((p) => h("li", {}, title(p), p.error ? ` (could not be examined: ${p.error})` : ""))));
}

function sheet(image) {
  const canvas = image.image ? h("div", { class: "canvas", vars: { "--ratio": image.width / image.height } },
    h("img", { src: image.image, alt: "" }), outlines(image, { regions: true, lines: true, truth: true }), ...tags(image, { buttons: false })) : null;
  return h("section", { class: "sheet" },
    h("header", {}, h("h2", {}, title(image)), h("p", { class: "facts-line" }, factsLine(image)), h("p", { class: "verdict-line" }, verdictLine(image))),
    canvas,
    image.instances.length ? image.instances.map((instance) => findingSheet(image, instance)) : nothingFound(image));
}

function findingSheet(image, instance) {
  const given = verdictOf(image, instance);
  const proofs = instance.copies.map((copy) => h("div", { class: "proof" }, sentence(instance, copy), h("div", { class: "tiles" }, ...pairTiles(instance, copy))));
  const decision = [given.verdict ? `Reviewer: ${given.verdict}.` : "Reviewer: no verdict yet.", given.note].filter(Boolean).join(" ");
  return h("section", { class: "finding" }, findingHead(instance, null),
    proofs.length ? proofs : h("p", { class: "sentence" }, instance.sentence),
    instance.others.length ? h("p", {}, `${count(instance.others.length, "further pair is", "further pairs are")} listed on the page.`) : null,
    h("p", { class: "decision" }, decision));
}

async function printPage() {
  drawSheets();
  await Promise.all([...$("sheets").querySelectorAll("img")].map((image) => image.decode().catch(() => null)));
  window.print();
}

// Start -----------------------------------------------------------------------------------------------------------

for (const [id, options] of [["show", SHOWS], ["sort", SORTS]])
  $(id).append(...Object.entries(options).map(([value, [text]]) => h("option", { value }, text)));
if (settings.truth_known) $("sort").value = "worst";
const bestScore = Math.min(1, Math.max(0, ...images.map((p) => p.score)));
$("threshold").max = Math.max(0.01, Math.ceil(bestScore * 100) / 100);
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

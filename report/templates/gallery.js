// The summary of the run and the gallery: which images the filters let through, in which order, and their cards.

const PAGE = 60; // cards drawn at a time
let list = []; // the images that the filters let through, in order
let drawn = 0; // how many of them have a card

// Summary ---------------------------------------------------------------------------------------------------------

function drawCounts() {
  const findings = images.flatMap((p) => p.instances.map((i) => [p, i]));
  const found = images.filter((p) => p.instances.length).length;
  const errors = images.filter((p) => p.verdict === "error").length;
  const examined = images.length - errors;
  const modelOnly = findings.filter(([, i]) => !i.copies.length).length;
  const given = findings.map(([p, i]) => verdictOf(p, i).verdict).filter(Boolean);
  const confirmed = given.filter((verdict) => verdict === "confirmed").length;
  const sentence = found
    ? [h("strong", {}, `${number.format(found)} of ${count(examined, "image", "images")}`), ` ${found === 1 ? "has" : "have"} findings: regions that appear more than once.`]
    : [examined ? `No repeated region was found in ${count(examined, "image", "images")}.` : "No image was examined."];
  if (settings.not_examined) sentence.push(` Not examined: ${number.format(settings.not_examined)}, see the list below.`);
  $("headline").replaceChildren(...sentence);
  const items = [["images examined", examined], ["images with findings", found], ["findings", findings.length]];
  if (modelOnly) items.push(["findings by the model only", modelOnly]);
  if (errors) items.push(["could not be examined", errors]);
  if (settings.not_examined) items.push(["not examined", settings.not_examined]);
  if (findings.length) items.push(["findings reviewed", `${given.length} of ${findings.length}`]);
  if (confirmed) items.push(["findings confirmed", confirmed]);
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

// Filters and order -----------------------------------------------------------------------------------------------

const SHOWS = {
  all: ["all images", () => true],
  found: ["with findings", (p) => p.verdict === "found"],
  clean: ["nothing found", (p) => p.verdict === "clean"],
  error: ["could not be examined", (p) => p.verdict === "error"],
};
const SORTS = {
  score: ["highest score first", (a, b) => b.score - a.score],
  name: ["name", () => 0],
  findings: ["most findings first", (a, b) => b.instances.length - a.instances.length],
  area: ["largest copied area first", (a, b) => share(b) - share(a)],
};
if (settings.truth_known) {
  SHOWS.missed = ["with missed instances", (p) => missed(p) > 0];
  SHOWS.false = ["with false instances", (p) => falseOnes(p) > 0];
  SORTS.worst = ["lowest oF1 first", (a, b) => of1(a) - of1(b)];
}
const of1 = (image) => (image.truth ? image.truth.object_f1 : 2); // images without truth come last
const share = (image) => image.instances.reduce((sum, i) => sum + i.area, 0) / Math.max(1, image.width * image.height || 1);
const collator = new Intl.Collator("en", { numeric: true });
const byTitle = (a, b) =>
  collator.compare(a.path, b.path) || collator.compare(a.part || "", b.part || "") || (a.page || 0) - (b.page || 0) || (a.figure || 0) - (b.figure || 0);

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

// Cards -----------------------------------------------------------------------------------------------------------

// Length of the path that all images share; cards leave it out.
const commonLength = (() => {
  let shared = images.length ? folderOf(images[0]).split("/") : [];
  for (const image of images) {
    const parts = folderOf(image).split("/");
    const end = shared.findIndex((part, i) => part !== parts[i]);
    if (end >= 0) shared = shared.slice(0, end);
  }
  return shared.length ? shared.join("/").length + 1 : 0;
})();

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
  const where = [place(image), folderOf(image).slice(commonLength)].filter(Boolean).join(" · ") || "\u00a0";
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

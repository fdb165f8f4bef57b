// The reviewer's verdicts on the findings: kept in the browser under the run's identity, exported and imported.

const KEY = `copy-move-verdicts:${settings.run}`;
let verdicts = {};
try {
  verdicts = JSON.parse(localStorage.getItem(KEY)) || {};
} catch (fault) {
  $("storage-notice").hidden = false;
}
const findingKey = (image, instance) => `${image.name}/${instance.id}`;
const verdictOf = (image, instance) => verdicts[findingKey(image, instance)] || {};
const say = (text) => ($("message").textContent = text);

function decide(image, instance, change) {
  const key = findingKey(image, instance);
  const next = { ...verdicts[key], ...change, changed: new Date().toISOString() };
  if (next.verdict || next.note) verdicts[key] = next;
  else delete verdicts[key];
  keepVerdicts();
}

function keepVerdicts() {
  try {
    localStorage.setItem(KEY, JSON.stringify(verdicts));
  } catch (fault) {
    $("storage-notice").hidden = false;
  }
  drawCounts();
}

// "" without findings; "open" until each has a verdict; then "confirmed" if any is, else "dismissed".
function reviewState(image) {
  const given = image.instances.map((instance) => verdictOf(image, instance).verdict);
  if (!given.length) return "";
  if (!given.every(Boolean)) return "open";
  return given.includes("confirmed") ? "confirmed" : "dismissed";
}

function exported() {
  const findings = [];
  for (const image of images)
    for (const instance of image.instances) {
      const verdict = verdictOf(image, instance);
      if (!verdict.verdict && !verdict.note) continue;
      findings.push({
        path: image.path, part: image.part, label: image.label, page: image.page, figure: image.figure, image: image.name, finding: instance.id,
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
    const given = JSON.parse(await file.text()).findings;
    const known = new Set(images.flatMap((p) => p.instances.map((i) => findingKey(p, i))));
    let imported = 0;
    for (const finding of given) {
      const key = `${finding.image}/${finding.finding}`;
      if (!known.has(key)) continue;
      const verdict = ["confirmed", "dismissed"].includes(finding.verdict) ? finding.verdict : undefined;
      verdicts[key] = { verdict, note: String(finding.note || ""), changed: String(finding.changed || "") };
      imported += 1;
    }
    keepVerdicts();
    draw();
    const others = imported < given.length ? " The others belong to findings that are not on this page." : "";
    say(`Imported ${imported} of ${count(given.length, "verdict", "verdicts")}.${others}`);
  } catch (fault) {
    say("This file does not hold verdicts that were exported from such a page.");
  }
}

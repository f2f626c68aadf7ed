// The page: what is shown, in which order, and what the controls do.

const rows = JSON.parse(byId("rows").textContent);
const settings = JSON.parse(byId("settings").textContent);
byId("rows").remove(); // otherwise the pictures are in memory twice

const scores = rows.filter((row) => row.score !== null).map((row) => row.score); // ascending
const known = settings.normal_scores;
const least = known.length ? 1 / (known.length + 1) : null;
const learnt = settings.threshold;
const slider = byId("threshold");
const span = spanOf(scores, known, learnt);
slider.min = span.low;
slider.max = span.high;
const atStart = learnt === null ? span.low : learnt;
let threshold = atStart; // exact; the slider rounds its value

const nShared = commonFolder(rows.map((row) => row.name)).length;
const middle = middleRatio(rows);
const shapes = rows.map((row) => shapeOf(row, middle));
document.documentElement.style.setProperty("--column", `${columnOf(middle, shapes)}px`);
const cards = rows.map((row, index) => makeCard(row, index, nShared, least, shapes[index]));
const place = byId("images");
const rowOf = (card) => rows[card.dataset.index];
for (const text of document.querySelectorAll("h1, #provenance b, #provenance span:not(:has(*))")) {
  setText(text, text.textContent);
}
let shown = []; // the cards that are not hidden, as they are seen
let groups = []; // of folders: heading and cards

const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      showPictures(entry.target, rowOf(entry.target));
    }
  },
  { rootMargin: "800px" },
);
cards.forEach((card) => near.observe(card));
// A printer shows what is far from the window too.
addEventListener("beforeprint", () => shown.forEach((card) => showPictures(card, rowOf(card))));

// A card in focus is scrolled to where the header does not hide it.
const header = document.querySelector("header");
const keepClear = () => {
  const covers = getComputedStyle(header).position === "sticky";
  document.documentElement.style.scrollPaddingTop = covers ? `${header.offsetHeight + 8}px` : "";
};
new ResizeObserver(keepClear).observe(header);
addEventListener("resize", keepClear);

// ------------------------------------------------------------------------------------------------------------- order

const key = {
  anomalous: (row, index) => index, // as the rows are given
  normal: (row) => (row.score === null ? Infinity : -row.score),
  doubt: (row) => (row.score === null ? Infinity : Math.abs(row.score - threshold)),
};

const sorted = () => {
  const sort = byId("sort").value;
  if (sort === "path") {
    const collator = new Intl.Collator("en", { numeric: true });
    return [...cards].sort((a, b) => collator.compare(rowOf(a).name, rowOf(b).name));
  }
  const keys = rows.map(key[sort]);
  return [...cards].sort((a, b) => keys[a.dataset.index] - keys[b.dataset.index]); // Infinity - Infinity is NaN: as is
};

const makeList = (label, members) => {
  const list = element("ol", "");
  list.setAttribute("aria-label", label);
  list.append(...members);
  return list;
};

let ordered = ""; // what the cards are ordered by now
/** Put the cards in order: they are moved, never made anew. */
const order = () => {
  const sort = byId("sort").value;
  const wanted = `${sort} ${byId("group").checked}` + (sort === "doubt" ? ` ${threshold}` : "");
  if (wanted === ordered) return;
  ordered = wanted;
  const members = sorted();
  const title = byId("sort").selectedOptions[0].textContent;
  groups = [];
  place.classList.toggle("grouped", byId("group").checked);
  if (!byId("group").checked) {
    place.replaceChildren(makeList(`Images, ${title}`, members));
    return;
  }
  const folders = new Map();
  for (const card of members) {
    const folder = folderOf(rowOf(card).name);
    if (!folders.has(folder)) folders.set(folder, []);
    folders.get(folder).push(card);
  }
  const collator = new Intl.Collator("en", { numeric: true });
  groups = [...folders].sort(([a], [b]) => collator.compare(a, b)).map(([folder, own]) => {
    const section = element("section", "");
    const name = folder.slice(nShared) || folder || "images";
    const count = element("small", "");
    const heading = element("h2", "", `${name} `);
    heading.append(count);
    section.append(heading, makeList(`${name}, ${title}`, own));
    return { section, count, cards: own };
  });
  place.replaceChildren(...groups.map((group) => group.section));
};

// ------------------------------------------------------------------------------------------------------------ update

const drawThreshold = drawHistogram(byId("histogram"), span, scores, known);
if (scores.length) {
  byId("lowest").textContent = span.cut ? `${number(span.low)} and lower` : number(span.low);
  byId("highest").textContent = number(span.high);
}
byId("known-help").hidden = known.length === 0;

/** How many normal images would be called anomalous, as far as those that the model knows can tell. */
const falseAlarms = () => {
  if (!known.length) return "";
  const count = known.filter((score) => score < threshold).length;
  if (count === 0) return `fewer than 1 in ${known.length} new normal images would be called anomalous`;
  const share = (count + 1) / (known.length + 1);
  const words = share > 0.1 ? `${Math.round(100 * share)} % of` : `1 in ${oneIn(share)}`;
  return `about ${words} new normal images would be called anomalous`;
};

const relabel = () => {
  let anomalous = 0;
  rows.forEach((row, index) => {
    if (row.score === null) return;
    const low = row.anomalous || row.score < threshold;
    anomalous += low;
    if (row.low === low) return;
    row.low = low;
    cards[index].className = low ? "anomalous" : "normal";
    row.label.textContent = low ? "anomalous" : "normal";
  });
  drawThreshold(threshold);
  byId("threshold-value").textContent = number(threshold);
  byId("threshold-words").textContent = falseAlarms();
  slider.setAttribute("aria-valuetext", `${number(threshold)}: ${anomalous} of ${scores.length} images anomalous`);
  return anomalous;
};

const matches = (row, wanted) => {
  const tick = ticks.of(row);
  if (wanted === "unticked") return tick === null;
  if (wanted === "good" || wanted === "defect") return tick === wanted;
  if (wanted === "contrary") return row.score !== null && tick !== null && (tick === "defect") !== row.low;
  return wanted === (row.score === null ? "error" : row.low ? "anomalous" : "normal");
};

/** The one card that the tab key reaches; arrow keys lead to the others. */
let current = null;
const makeCurrent = (card) => {
  for (const [of, index] of [[current, -1], [card, 0]]) of?.querySelectorAll("button").forEach((button) => (button.tabIndex = index));
  current = card;
};

const update = () => {
  const anomalous = relabel();
  order();
  const wanted = byId("label").value;
  const text = byId("text").value.toLowerCase();
  let good = 0;
  let defects = 0;
  rows.forEach((row, index) => {
    const card = cards[index];
    const tick = ticks.of(row);
    good += tick === "good";
    defects += tick === "defect";
    if ((card.dataset.ticked ?? null) !== tick) {
      if (tick === null) delete card.dataset.ticked;
      else card.dataset.ticked = tick;
      pressTicks(card, tick);
    }
    const hidden = (wanted !== "all" && !matches(row, wanted)) || !`${row.name}\n${row.note ?? ""}`.toLowerCase().includes(text);
    if (card.hidden !== hidden) card.hidden = hidden;
  });
  shown = [...place.querySelectorAll("li:not([hidden])")];
  for (const group of groups) {
    const seen = group.cards.filter((card) => !card.hidden);
    const low = seen.filter((card) => rowOf(card).low).length;
    group.section.hidden = seen.length === 0;
    group.count.textContent = `${counted(seen.length, "image", "images")}, ${low} anomalous`;
  }
  if (current === null || current.hidden) makeCurrent(shown[0] ?? null);
  document.documentElement.style.setProperty("--heat", byId("heat").value / 100);
  const unreadable = rows.length - scores.length;
  const elsewhere = ticks.size - good - defects;
  byId("status").textContent =
    `${anomalous} of ${scores.length} images anomalous` +
    (unreadable ? `, ${unreadable} unreadable` : "") +
    `; ${shown.length} shown` +
    (ticks.size ? `; ticked: ${good} good, ${counted(defects, "defect", "defects")}` : "") +
    (elsewhere ? `, ${elsewhere} that ${elsewhere === 1 ? "is" : "are"} not on this page any more` : "");
  byId("none").hidden = shown.length > 0;
  byId("save").disabled = byId("forget").disabled = ticks.size === 0;
  byId("not-kept").hidden = ticks.lasting;
  if (viewer.dialog.open) viewer.refresh();
};

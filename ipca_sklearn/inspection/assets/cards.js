// A card for each image. Its pictures are decoded when it comes near the window.

/** The part of all paths up to their last common folder. */
const commonFolder = (names) => {
  const folders = names.map((name) => name.slice(0, name.search(/[^/\\]*$/)));
  let common = folders[0] ?? "";
  for (const folder of folders) {
    while (!folder.startsWith(common)) common = common.replace(/[^/\\]*[/\\]?$/, "");
  }
  return common;
};

const folderOf = (name) => name.replace(/[/\\]?[^/\\]*$/, "");

const shape = (frame, size) => {
  frame.style.setProperty("--h", size[0]);
  frame.style.setProperty("--w", size[1]);
};

// Pictures of any shape are about as large as each other, and fill the width that they are given.
const SIDE = 158; // pixels, of a square
const BESIDE = 200; // the narrowest column with a tall picture beside its text
const TALLEST = 420; // of a picture beside its text

/** Width / height of the picture of a row, within what a card can show. */
const ratioOf = (row) => Math.min(8, Math.max(1 / 8, row.size[1] / row.size[0]));

/** The middle one of all ratios: columns are made for it. */
const middleRatio = (rows) => {
  const ratios = rows.filter((row) => row.image !== null).map(ratioOf).sort((a, b) => a - b);
  return ratios[ratios.length >> 1] ?? 1;
};

/** How a card shows its picture: above its text, beside it, or above it over two columns. */
const shapeOf = (row, middle) => {
  if (row.image === null) return "above";
  const ratio = ratioOf(row);
  if (ratio < 0.6 * Math.max(1, middle)) return "beside";
  return ratio > 1.8 && middle < 1.8 ? "double" : "above";
};

/** The width of a column for pictures of this ratio. Where some take two columns, a phone has two. */
const columnOf = (middle, shapes) => {
  const width = shapes.includes("double") ? SIDE : SIDE * Math.sqrt(Math.min(5, Math.max(1, middle)));
  return shapes.includes("beside") ? Math.max(BESIDE, width) : width;
};

const tickButton = (label) => {
  const button = element("button", "", label);
  button.type = "button";
  button.dataset.tick = label;
  button.tabIndex = -1; // of the card that is reached by the tab key, see report.js
  button.setAttribute("aria-pressed", "false");
  return button;
};

const pressTicks = (place, tick) => {
  for (const button of place.querySelectorAll("[data-tick]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tick === tick));
  }
};

const makeCard = (row, index, nShared, least, cardShape) => {
  const card = element("li", row.error === null ? "" : "error");
  card.dataset.index = index;
  card.dataset.shape = cardShape;
  const open = element("button", "open");
  open.type = "button";
  open.tabIndex = -1;
  if (row.image !== null) {
    const stage = element("span", "picture");
    stage.style.setProperty("--side", `${TALLEST * ratioOf(row)}px`);
    const frame = element("span", "frame");
    shape(frame, row.size);
    for (const name of ["image", "heat"]) {
      if (row[name] === null) continue;
      const picture = element("img", name);
      picture.alt = "";
      frame.append(picture);
    }
    stage.append(frame);
    open.append(stage);
  }
  row.label = element("span", "label", row.error === null ? "" : "unreadable");
  const name = element("span", "name");
  const folder = row.name.slice(nShared).replace(/[^/\\]*$/, "");
  const file = row.name.slice(nShared + folder.length);
  name.append(setText(element("span", "folder"), folder), setText(element("span", "file"), file));
  name.title = row.name;
  const about = element("span", "about");
  about.append(row.label, name);
  if (row.score !== null) {
    about.append(element("span", "values", `score ${number(row.score)}`));
    if (row.p !== null) about.append(element("span", "values", rarity(row.p, least)));
  }
  if (row.note !== null) about.append(setText(element("span", "remark"), row.note));
  if (row.error !== null) about.append(setText(element("span", "message"), row.error));
  open.append(about);
  const marks = element("div", "ticks");
  marks.append(tickButton("good"), tickButton("defect"));
  card.append(open, marks);
  return card;
};

/** Give the pictures of a card their content. */
const showPictures = (card, row) => {
  const ratio = row.image === null ? 1 : ratioOf(row);
  // A small picture has a fixed longer side: of a long shape it would be enlarged, and blurred.
  const large = ratio < 0.6 || ratio > 1.8 ? byId(`picture-${row.id}`) : null;
  for (const picture of card.querySelectorAll("img:not([src])")) {
    picture.src = picture.className === "image" && large !== null ? large.textContent.trim() : row[picture.className];
  }
};

/** The card to which an arrow key leads, among those that are shown. */
const neighbour = (cards, card, key) => {
  const at = cards.indexOf(card);
  if (key === "ArrowLeft") return cards[at - 1];
  if (key === "ArrowRight") return cards[at + 1];
  if (key === "Home") return cards[0];
  if (key === "End") return cards[cards.length - 1];
  const step = key === "ArrowDown" ? 1 : -1;
  const { left, top } = card.getBoundingClientRect();
  let best;
  let rowTop = null;
  for (let index = at + step; cards[index]; index += step) {
    const place = cards[index].getBoundingClientRect();
    if (Math.abs(place.top - top) < 2) continue; // the same line
    rowTop ??= place.top;
    if (Math.abs(place.top - rowTop) > 2) break;
    const distance = Math.abs(place.left - left);
    if (best === undefined || distance < best.distance) best = { card: cards[index], distance };
  }
  return best?.card;
};

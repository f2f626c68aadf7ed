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

const makeCard = (row, index, nShared, least) => {
  const card = element("li", row.error === null ? "" : "error");
  card.dataset.index = index;
  const open = element("button", "open");
  open.type = "button";
  open.tabIndex = -1;
  const stage = element("span", "picture");
  if (row.image !== null) {
    const frame = element("span", "frame");
    shape(frame, row.size);
    for (const name of ["image", "heat"]) {
      if (row[name] === null) continue;
      const picture = element("img", name);
      picture.alt = "";
      frame.append(picture);
    }
    stage.append(frame);
  }
  row.label = element("span", "label", row.error === null ? "" : "unreadable");
  const name = element("span", "name");
  const folder = row.name.slice(nShared).replace(/[^/\\]*$/, "");
  name.append(element("span", "folder", folder), element("span", "file", row.name.slice(nShared + folder.length)));
  name.title = row.name;
  open.append(stage, row.label, name);
  if (row.score !== null) {
    open.append(element("span", "values", `score ${number(row.score)}`));
    if (row.p !== null) open.append(element("span", "values", rarity(row.p, least)));
  }
  if (row.error !== null) open.append(element("span", "message", row.error));
  const marks = element("div", "ticks");
  marks.append(tickButton("good"), tickButton("defect"));
  card.append(open, marks);
  return card;
};

/** Give the pictures of a card their content. */
const showPictures = (card, row) => {
  for (const picture of card.querySelectorAll("img:not([src])")) picture.src = row[picture.className];
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

// Numbers and shares in words.

const byId = (id) => document.getElementById(id);

const element = (tag, name, text) => {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text; // text, never markup
  return made;
};

/** Put a text into an element: it breaks after "/", "_" and the like, and never in the suffix of a file or just before it. */
const setText = (place, text) => {
  place.replaceChildren();
  let start = 0;
  for (const found of text.matchAll(/[^\s/\\_-]{0,5}\.[A-Za-z0-9]{1,6}(?=[,;:)]?(?:\s|$))|[/\\_-]+/g)) {
    const end = found.index + found[0].length;
    if (/^[/\\_-]/.test(found[0])) {
      place.append(text.slice(start, end), document.createElement("wbr"));
    } else {
      place.append(text.slice(start, found.index), element("span", "tail", found[0]));
    }
    start = end;
  }
  place.append(text.slice(start));
  return place;
};

const number = (value) => value.toPrecision(4).replace("-", "\u2212");

const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;

/** Two digits of 1 / share, such as 82 or 1200. */
const oneIn = (share) => {
  const whole = Math.round(1 / share);
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(whole)) - 1);
  return Math.round(whole / unit) * unit;
};

/** A share as "3 of 4": the smallest of these denominators that is near enough. */
const someOf = (share) => {
  for (const whole of [2, 3, 4, 5, 10]) {
    const part = Math.round(share * whole);
    if (part > 0 && part < whole && Math.abs(part / whole - share) < 0.04) return `${part} of ${whole}`;
  }
  return share < 0.5 ? "1 of 10" : "almost all";
};

/** How rare a p-value is. No p-value is below `least`: that one stands for all that is rarer, too. */
const rarity = (p, least) => {
  if (p > 0.1) return `like ${someOf(p)} normal images`;
  const rarer = least !== null && p <= least * 1.0001 ? "at least " : "";
  return `${rarer}as rare as 1 in ${oneIn(p)}`;
};

const longRarity = (p, least) => {
  if (p > 0.1) return `Of normal images, ${someOf(p)} score as low as this one or lower.`;
  const known = least !== null && p <= least * 1.0001;
  return known
    ? `No normal image that the model knows scores as low. It is at least as rare as 1 in ${oneIn(p)} normal images.`
    : `Of normal images, about 1 in ${oneIn(p)} scores as low as this one or lower.`;
};

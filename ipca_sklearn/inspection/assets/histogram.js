// The scores as bars, in two colours: the slider of the threshold lies over them, and its thumb is the line.

const N_BINS = 60;

const svg = (tag, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

/** From where to where scores are drawn. A few that are far lower than all others count in the first bar. */
const spanOf = (scores, known, learnt) => {
  const all = [...scores, ...known, ...(learnt === null ? [] : [learnt])].sort((a, b) => a - b);
  if (!all.length) return { low: 0, high: 1, cut: false };
  const middle = learnt ?? all[all.length >> 1];
  const high = all[all.length - 1];
  const far = middle - 12 * (high - middle || 1);
  const cut = all[0] < far && high > middle;
  const low = cut ? far : all[0];
  const margin = (high - low) / 50 || 0.01;
  return { low: low - margin, high: high + margin, cut };
};

const drawHistogram = (place, span, scores, known) => {
  const heights = (values) => {
    const bins = new Array(N_BINS).fill(0);
    for (const value of values) {
      const bin = Math.floor(((value - span.low) / (span.high - span.low)) * N_BINS);
      bins[Math.min(N_BINS - 1, Math.max(0, bin))] += 1;
    }
    const largest = Math.max(...bins, 1);
    return bins.map((count) => (count ? 4 + (92 * count) / largest : 0)); // a single image is seen, too
  };
  const width = 1000 / N_BINS;
  const bars = heights(scores)
    .map((height, bin) => (height ? `M${bin * width + 1.5},100v${-height}h${width - 3}v${height}z` : ""))
    .join("");
  const outline = heights(known).map((height) => `V${100 - height}h${width}`).join("");
  const below = svg("rect", { x: 0, y: 0, width: 0, height: 100 });
  const above = svg("rect", { x: 0, y: 0, width: 1000, height: 100 });
  for (const [id, part] of [["below", below], ["above", above]]) {
    const clip = svg("clipPath", { id });
    clip.append(part);
    place.append(clip, svg("path", { d: bars, class: id, "clip-path": `url(#${id})` }));
  }
  if (known.length) place.append(svg("path", { d: `M0,100${outline}V100`, class: "known" }));
  return (threshold) => {
    const x = Math.min(1000, Math.max(0, (1000 * (threshold - span.low)) / (span.high - span.low)));
    below.setAttribute("width", x);
    above.setAttribute("x", x);
    above.setAttribute("width", 1000 - x);
  };
};

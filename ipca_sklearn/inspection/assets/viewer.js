// One image, large, with its heat map and the outlines of what is anomalous.

const viewer = (() => {
  const dialog = byId("viewer");
  let row = null;

  const draw = () => {
    const boxes = byId("viewer-boxes");
    boxes.replaceChildren();
    if (row.size === null) return;
    boxes.setAttribute("viewBox", `0 0 ${row.size[1]} ${row.size[0]}`);
    let kind = row.low ? "outline" : "outline faint"; // of a normal image: where it is least normal
    if (row.boxes.length > 20) kind += " thin";
    for (const [y, x, height, width] of row.boxes) boxes.append(svg("rect", { x, y, width, height, class: kind }));
  };

  const set = (id, text) => {
    setText(byId(id), text);
    byId(id).hidden = !text;
  };

  const picture = (id, source) => {
    byId(id).hidden = source === null;
    if (source === null) byId(id).removeAttribute("src");
    else byId(id).src = source;
  };

  return {
    dialog,
    get row() {
      return row;
    },
    /** Show a row, the place-th of n. */
    show(shown, place, n, least) {
      row = shown;
      const large = byId(`picture-${row.id}`);
      const source = large === null ? row.image : large.textContent.trim();
      byId("viewer-frame").hidden = source === null;
      byId("viewer-blank").hidden = source !== null;
      if (row.size !== null) shape(byId("viewer-frame"), row.size);
      picture("viewer-image", source);
      picture("viewer-heat", source === null ? null : row.heat);
      set("viewer-place", `${place + 1} of ${n}`);
      set("viewer-name", row.name);
      set("viewer-score", row.score === null ? "" : `Score ${number(row.score)}`);
      set("viewer-words", row.score === null || row.p === null ? "" : longRarity(row.p, least));
      set("viewer-note", row.note ?? "");
      set("viewer-error", row.error ?? "");
      const nDrawn = row.boxes.length;
      set("viewer-regions", row.n_boxes > nDrawn ? `${row.n_boxes} regions; outlines show the ${nDrawn} worst.` : "");
      byId("previous").disabled = place === 0;
      byId("next").disabled = place === n - 1;
      this.refresh();
      if (!dialog.open) dialog.showModal();
    },
    /** Show what depends on the threshold and on the ticks. */
    refresh() {
      if (row === null) return;
      const label = row.score === null ? "unreadable" : row.low ? "anomalous" : "normal";
      byId("viewer-label").textContent = label;
      byId("viewer-label").className = `label ${label}`;
      pressTicks(dialog, ticks.of(row));
      draw();
    },
  };
})();

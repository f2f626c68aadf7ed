// What the reader has ticked: "good" or "defect" for a path, kept by the browser for this page.

const ticks = (() => {
  const key = `ipca-sklearn ticks ${location.pathname}`;
  const kept = new Map(); // path to [label, score]
  let lasting = true;
  let unsaved = false;

  const read = () => {
    let text = null;
    try {
      text = localStorage.getItem(key);
    } catch {
      lasting = false; // the reader has forbidden it, or the page is shown by a program that has none
    }
    kept.clear();
    try {
      for (const [path, label, score] of JSON.parse(text ?? "[]")) kept.set(path, [label, score]);
    } catch {
      kept.clear(); // another program has written there
    }
  };

  const write = () => {
    unsaved = kept.size > 0;
    try {
      localStorage.setItem(key, JSON.stringify([...kept].map(([path, values]) => [path, ...values])));
    } catch {
      lasting = false;
    }
  };

  /** The cells of a table, as the command line writes them: no spreadsheet runs a name as a formula. */
  const cell = (text) => {
    const safe = /^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };

  /** UTF-8, and bytes of names that are not UTF-8 as they are: Python has them as lone surrogates. */
  const bytes = (text) => {
    const encoder = new TextEncoder();
    return text
      .split(/([\udc80-\udcff])/u) // "u": not the second half of a pair
      .map((part) => (/^[\udc80-\udcff]$/u.test(part) ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : encoder.encode(part)));
  };

  const save = () => {
    const lines = [...kept].map(([path, [label, score]]) => `${cell(path)},${label},${score ?? ""}\r\n`);
    // The mark of byte order tells spreadsheets that it is UTF-8.
    const table = new Blob(bytes(`\ufeffpath,label,score\r\n${lines.join("")}`), { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(table);
    link.download = "ticks.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    unsaved = false;
  };

  addEventListener("beforeunload", (event) => {
    if (unsaved && !lasting) event.preventDefault();
  });
  read();
  write(); // says whether it can
  unsaved = false;

  return {
    key,
    read,
    save,
    of: (row) => kept.get(row.name)?.[0] ?? null,
    toggle(row, label) {
      if (kept.get(row.name)?.[0] === label) kept.delete(row.name);
      else kept.set(row.name, [label, row.score]);
      write();
    },
    forget() {
      kept.clear();
      write();
    },
    get size() {
      return kept.size;
    },
    get lasting() {
      return lasting;
    },
  };
})();


// A little Markdown. Text becomes text nodes only: nothing that a model writes is read as HTML.

const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const FENCE = /^\s*(`{3,}|~{3,})(.*)$/;

/** The blocks of a text: [kind, text] or [kind, list of texts, first number]. */
function blocksOf(text) {
  const blocks = [];
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  let open = null;
  const add = (kind, line) => {
    if (open?.[0] === kind) open[1] += "\n" + line;
    else blocks.push(open = [kind, line]);
  };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (fence) {
      const code = [];
      while (++i < lines.length && !lines[i].trimStart().startsWith(fence[1])) code.push(lines[i]);
      blocks.push(["pre", code.join("\n")]);
      open = null;
      continue;
    }
    const heading = /^#{1,6}\s+(.*)$/.exec(line);
    const item = ITEM.exec(line);
    if (!line.trim()) open = null;
    else if (heading) { blocks.push(["h3", heading[1]]); open = null; }
    else if (item) {
      const kind = item[1] === undefined ? "ul" : "ol";
      const last = blocks.at(-1);
      if (last?.[0] === kind) last[1].push(item[2]);
      else blocks.push([kind, [item[2]], Number(item[1] ?? 1)]);
      open = null;
    } else if (/^\s*>/.test(line)) add("blockquote", line.replace(/^\s*>\s?/, ""));
    else add("p", line);
  }
  return blocks;
}

/** Puts text with `code`, **strong** and *emphasis* into an element. */
function putInline(element, text) {
  const pieces = text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*|\*[^*\s][^*\n]*\*)/);
  pieces.forEach((piece, i) => {
    // Every other piece is one that the pattern found.
    const [tag, cut] = i % 2 === 0 ? ["", 0] : piece[0] === "`" ? ["code", 1]
      : piece.startsWith("**") ? ["strong", 2] : ["em", 1];
    if (tag) element.append(make(tag, "", piece.slice(cut, -cut)));
    else if (piece) element.append(piece);
  });
}

function elementOf([kind, content, start]) {
  const element = make(kind);
  if (kind === "pre") {
    element.dir = "ltr";
    element.tabIndex = 0;
    element.append(make("code", "", content));
  } else if (Array.isArray(content)) {
    if (kind === "ol" && start !== 1) element.start = start;
    element.dir = "auto";
    for (const text of content) {
      const item = make("li");
      item.dir = "auto";
      putInline(item, text);
      element.append(item);
    }
  } else {
    element.dir = "auto";
    putInline(element, content);
  }
  return element;
}

/** Shows a text in an element again; blocks that are the same stay, and so does a selection. */
function show(element, text) {
  const blocks = blocksOf(text);
  const keys = blocks.map((block) => JSON.stringify(block));
  const shown = element.shownKeys ?? [];
  let same = 0;
  while (same < keys.length && keys[same] === shown[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const block of blocks.slice(same)) element.append(elementOf(block));
  element.shownKeys = keys;
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

// Elements made from text only: what a site or a device wrote never becomes markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a child is an element or becomes text. A property of `style` is a colour. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "color" || name === "width") made.style[name] = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Replace an element's children, but not where nothing would change. */
export function fill(parent, ...children) {
  const next = el("div", {}, ...children);
  if (parent.childNodes.length === next.childNodes.length && [...parent.childNodes].every((node, at) => node.isEqualNode(next.childNodes[at]))) return;
  const focused = document.activeElement, key = parent.contains(focused) ? focused.dataset.key : undefined;
  parent.replaceChildren(...next.childNodes);
  if (key) [...parent.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus();
}

export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/**
 * A table. A column is {head, cell(row), number, head_of_row, kind}: `cell` gives text or an element.
 */
export function table(columns, rows, caption) {
  const head = columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.head));
  return el("table", {},
    caption ? el("caption", { class: "visually-hidden" }, caption) : null,
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...rows.map((row) => line(columns, row))));
}

export function line(columns, row, attributes = {}) {
  const cells = columns.map((column) => {
    const shown = column.cell(row);
    const kind = [column.number ? "number" : "", column.kind ?? "", column.best?.(row) ? "best" : ""].filter(Boolean).join(" ");
    return el(column.first ? "th" : "td", { class: kind || null, scope: column.first ? "row" : null }, shown ?? "");
  });
  return el("tr", attributes, ...cells);
}

export function chip(state) {
  return el("span", { class: "state", "data-state": state }, state);
}

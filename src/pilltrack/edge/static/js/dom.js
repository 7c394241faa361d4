// Small helpers around the document: text is always set as text, never as markup.
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

// A drawing of icons.svg, for the eye only.
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `icons.svg#${name}`);
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  made.append(use);
  return made;
}

export function announce(words) {
  document.querySelector("#announcer").textContent = words;
}

export function notice(kind, title, ...lines) {
  return element("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" },
    element("p", {}, element("strong", {}, title)),
    lines.filter(Boolean).map((line) => element("p", {}, line)));
}

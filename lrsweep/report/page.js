// The report's script: sorts tables, copies the config, shows a trial under the pointer, and hides curves.
"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const tip = document.getElementById("tip");

// The trial that a part of a figure belongs to: its id ends with -trial-NUMBER.
function trialOf(element) {
  const part = element.closest && element.closest('g[id*="-trial-"]');
  return part ? part.id.split("-trial-")[1].split("-")[0] : null;
}

function partsOf(trial) {
  return [...document.querySelectorAll(`g[id$="-trial-${trial}"]`)];
}

function mark(trial) {
  document.querySelectorAll(".marked").forEach((part) => part.classList.remove("marked"));
  if (trial === null) return;
  partsOf(trial).forEach((part) => part.classList.add("marked"));
  document.querySelectorAll(`tr[data-trial="${trial}"]`).forEach((row) => row.classList.add("marked"));
}

document.addEventListener("mousemove", (event) => {
  const trial = trialOf(event.target);
  tip.hidden = trial === null || !(trial in facts);
  mark(trial);
  if (tip.hidden) return;
  tip.textContent = facts[trial];
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${event.clientY + 16}px`;
});

document.querySelectorAll("[data-toggle]").forEach((button) => {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    partsOf(button.dataset.toggle).forEach((part) => part.classList.toggle("hidden", !shown));
  });
  button.addEventListener("mouseenter", () => mark(button.dataset.toggle));
  button.addEventListener("mouseleave", () => mark(null));
});

document.querySelectorAll("table.sortable th").forEach((head) => {
  head.tabIndex = 0;
  const sort = () => {
    const column = [...head.parentNode.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const text = (row) => row.cells[column].textContent;
    const order = (one, two) => {
      const [a, b] = [Number(text(one)), Number(text(two))];
      // Numbers come before texts, such as the dash of a trial without a loss.
      if (!Number.isNaN(a) && !Number.isNaN(b)) return up ? a - b : b - a;
      if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
      return (up ? 1 : -1) * text(one).localeCompare(text(two));
    };
    body.append(...[...body.rows].sort(order));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      sort();
    }
  });
});

document.querySelectorAll("[data-copy]").forEach((button) => {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // A page from a file may have no clipboard; selecting the text and copying it works there.
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
});

// A text field with suggestions, by the combobox pattern of the ARIA Authoring Practices Guide: the field keeps the
// focus, arrows move through the list, Enter takes, Escape closes and then clears.

/**
 * @param {HTMLInputElement} input with role combobox.
 * @param {HTMLElement} listbox
 * @param {{search: (text: string) => any[], render: (found: any) => Node[], choose: (found: any) => void,
 *   announce: (text: string) => void}} does
 */
export function makeCombobox(input, listbox, { search, render, choose, announce }) {
  let found = [];
  let active = -1;

  function open(text) {
    found = search(text);
    active = -1;
    listbox.replaceChildren(
      ...found.map((one, place) => {
        const option = document.createElement("li");
        option.id = `${listbox.id}-${place}`;
        option.setAttribute("role", "option");
        option.setAttribute("aria-selected", "false");
        option.append(...render(one));
        return option;
      }),
    );
    show(found.length > 0);
    if (text) announce(found.length ? `${found.length} suggestions` : "No product has these words");
  }

  function show(visible) {
    listbox.hidden = !visible;
    input.setAttribute("aria-expanded", String(visible));
    if (!visible) activate(-1);
  }

  function activate(place) {
    listbox.children[active]?.setAttribute("aria-selected", "false");
    active = place;
    const option = listbox.children[active];
    if (!option) {
      input.removeAttribute("aria-activedescendant");
      return;
    }
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", option.id);
  }

  function take(place) {
    const chosen = found[place];
    input.value = "";
    show(false);
    choose(chosen);
  }

  input.addEventListener("input", () => (input.value.trim() ? open(input.value) : show(false)));
  input.addEventListener("blur", () => show(false));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const isOpen = !listbox.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!isOpen) open(input.value);
      if (event.altKey || !found.length) return;
      const down = event.key === "ArrowDown";
      activate(active < 0 ? (down ? 0 : found.length - 1) : (active + (down ? 1 : -1) + found.length) % found.length);
    } else if (event.key === "Enter" && isOpen) {
      event.preventDefault();
      take(Math.max(active, 0));
    } else if (event.key === "Escape") {
      if (!isOpen) input.value = "";
      show(false);
    }
  });
  // The field would lose the focus at mousedown.
  listbox.addEventListener("mousedown", (event) => event.preventDefault());
  listbox.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) take([...listbox.children].indexOf(option));
  });
}

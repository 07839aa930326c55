// Sets <html data-theme="light|dark"> before the first paint: a classic script, since modules run too late for that.
// Owns the only thing that the console keeps in localStorage beside the switch of the shortcuts: `console-theme`.
// window.consoleTheme: {choice() -> "system"|"light"|"dark", choose(choice), CHOICES}; a "themechange" event on
// document follows every change.
"use strict";
(() => {
  const KEY = "console-theme";
  const CHOICES = ["system", "light", "dark"];
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");

  function kept() {
    try {
      const value = window.localStorage.getItem(KEY);
      return CHOICES.includes(value) ? value : "system";
    } catch {
      return "system"; // storage is forbidden: the choice lasts as long as the page
    }
  }

  let choice = kept();

  function apply() {
    const dark = choice === "dark" || (choice === "system" && systemDark.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.dispatchEvent(new Event("themechange"));
  }

  function choose(next) {
    choice = CHOICES.includes(next) ? next : "system";
    try {
      window.localStorage.setItem(KEY, choice);
    } catch {
      // As above.
    }
    apply();
  }

  systemDark.addEventListener("change", apply);
  window.consoleTheme = Object.freeze({ CHOICES, choice: () => choice, choose });
  apply();
})();

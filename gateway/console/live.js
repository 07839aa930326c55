import { el } from "./ui.js";

export const page = {
  id: "live",
  title: "Live",
  permission: "metrics",
  mount(root) {
    root.append(el("h1", {}, "Live"));
  },
  unmount() {},
};

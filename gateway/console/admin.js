// Admin: engines, keys, usage, limits, the cache. What is shown is what the gateway has said last; nothing is assumed.
//
// Reading below /admin/ is audited by the gateway, a log line each, so only /health is looked at again by itself.

import { CacheCard, EnginesCard } from "./admincards.js";
import { KeysCard } from "./adminkeys.js";
import { LimitsCard, UsageCard } from "./adminusage.js";
import { button, el, replace } from "./ui.js";

class Admin {
  constructor(root, context, health, keys) {
    const { api, signal } = context;
    const options = { api, signal, open: context.session.state === "open" };
    this.engines = new EnginesCard(options, health);
    this.limits = new LimitsCard(options, keys);
    this.keys = new KeysCard(options, keys, (changed) => this.limits.refresh(changed));
    this.usage = new UsageCard(options);
    this.cache = new CacheCard(options, Object.keys(health.models));
    const refresh = button("Refresh", { icon: "refresh", id: "admin-refresh", onClick: () => this.refresh() });
    replace(
      root,
      el(
        "div",
        { class: "page" },
        el("div", { class: "page-head" }, el("h1", {}, "Admin"), refresh),
        this.engines.node,
        this.keys.node,
        this.limits.node,
        this.usage.node,
        this.cache.node,
      ),
    );
    this.limits.refresh();
    this.usage.refresh();
    this.cache.refresh();
  }

  refresh() {
    this.engines.refresh();
    this.keys.refresh();
    this.usage.refresh();
    this.cache.refresh();
  }
}

export const page = {
  id: "admin",
  title: "Admin",
  permission: "admin",
  async mount(root, context) {
    const { api, signal } = context;
    const { keys } = await api.get("admin/keys", { signal }); // refused first where the permission is missing
    const health = await EnginesCard.look(api);
    if (signal.aborted) return; // left meanwhile
    const shown = new Admin(root, context, health, keys);
    context.shortcuts([{ keys: "r", label: "Refresh", run: () => shown.refresh() }]);
  },
};

// The "Break it" panel: arms one fault for this user's next operation.

import { $, element, showError } from "./view.js";

const title = (fault) => fault.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());

export class Breaking {
  /** @param {(method: string, body?: object) => Promise<object>} call talks to /api/break */
  constructor(call) {
    this.call = call;
    this.state = { armed: null, operation: null, faults: [] };
    $("break-in").addEventListener("change", () => {
      if (this.state.armed) this.arm(this.state.armed);
    });
  }

  /** What is armed is the server's to say: an operation may have used it up. */
  async refresh() {
    try {
      this.state = await this.call("GET");
    } catch {
      return;
    }
    if (this.state.armed) {
      const where = $("break-in").elements.where;
      where.value = this.state.operation ?? where.value;
    }
    this.draw();
  }

  used() {
    if (this.state.armed) this.refresh();
  }

  async arm(fault) {
    showError($("break"), "");
    try {
      await this.call("POST", { fault, operation: $("break-in").elements.where.value });
    } catch (error) {
      showError($("break"), error.message);
    }
    await this.refresh();
  }

  async disarm() {
    await this.call("DELETE").catch((error) => showError($("break"), error.message));
    await this.refresh();
  }

  draw() {
    const { armed, operation, faults } = this.state;
    $("faults").replaceChildren(...faults.map((one) => {
      const mine = one.fault === armed;
      const button = element("button", {
        type: "button", disabled: !one.available,
        onclick: () => (mine ? this.disarm() : this.arm(one.fault)),
      },
      element("b", { textContent: title(one.fault) }),
      element("span", { className: "badge", textContent: mine ? "armed" : "", hidden: !mine }),
      element("span", { className: "does", textContent: one.does }));
      button.dataset.fault = one.fault;
      button.setAttribute("aria-pressed", String(mine));
      return element("li", {}, button);
    }));
    $("armed").textContent = armed
      ? `${title(armed)}: armed for your next ${operation ?? "operation"}. Press it again to disarm.`
      : "Nothing is armed.";
    $("show-break").toggleAttribute("data-armed", Boolean(armed));
  }
}

import { post } from "./api.js";
import { field, make } from "./dom.js";

export function signIn(main, done) {
  const key = make("input", { type: "password", name: "access_key", autocomplete: "current-password", required: true, maxlength: 500, autofocus: true });
  const fault = make("p", { class: "fault", role: "alert" });
  const button = make("button", { class: "main" }, "Sign in");
  const form = make("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      fault.textContent = "";
      button.disabled = true;
      const typed = key.value.trim();
      key.value = "";
      try {
        done(await post("/api/v1/dashboard-session", { access_key: typed }));
      } catch (error) {
        fault.textContent = error.message;
        key.setAttribute("aria-invalid", "true");
        key.focus();
      } finally {
        button.disabled = false;
      }
    },
  }, field("Access key", key), fault, make("p", {}), button);
  main.replaceChildren(make("div", { class: "card sign-in" }, make("h1", {}, "Sign in"),
    make("p", { class: "soft" }, "With an access key of this service, an admin's or a client's. It is kept in no page; the session ends when nobody does anything for a while."),
    form));
  key.focus();
}

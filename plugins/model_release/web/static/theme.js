// Before the first paint: the theme of Airflow's own page, when this one stands in it, and follows it while it is open.
// Airflow keeps its choice as a class of its root element, and under "theme" in local storage (next-themes).
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let outer = null;
  try {
    outer = window.parent !== window ? window.parent.document.documentElement : null;
  } catch {
    outer = null;
  }
  const chosen = () => {
    if (outer && (outer.classList.contains("dark") || outer.classList.contains("light")))
      return outer.classList.contains("dark");
    let kept = null;
    try {
      kept = localStorage.getItem("theme");
    } catch {
      kept = null;
    }
    return kept === "dark" || (kept !== "light" && dark.matches);
  };
  const apply = () => {
    const name = chosen() ? "dark" : "light";
    if (root.dataset.theme === name) return;
    root.dataset.theme = name;
    document.dispatchEvent(new CustomEvent("theme"));
  };
  root.dataset.framed = outer ? "yes" : "no";
  apply();
  dark.addEventListener("change", apply);
  addEventListener("storage", apply);
  if (outer) new MutationObserver(apply).observe(outer, { attributes: true, attributeFilter: ["class"] });
})();

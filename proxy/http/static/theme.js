// Sets the theme before anything is drawn; the button (dashboard.js) changes it. "auto" goes by the system's.
"use strict";
{
  const kept = localStorage.getItem("pgsluice-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
}

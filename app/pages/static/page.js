// Comfort only: every page works without this. Nothing is loaded from anywhere else; NiiVue is loaded when
// somebody asks for a volume in 3D.

import { tickTimes } from "./times.js";
import { watchCharts } from "./charts.js";
import { watchViewers } from "./viewer.js";
import { watchSpace } from "./space.js";
import { watchUpload } from "./upload.js";
import { followJob, followList } from "./live.js";

tickTimes();
document.querySelector("[data-menu] [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
watchCharts(document);
watchViewers();
watchSpace();
watchUpload();
followJob();
followList();

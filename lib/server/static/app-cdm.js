// Runs in OHIF's page before OHIF: tells its MONAI Label panel where this server is, and links to the tagging page.
(function () {
  'use strict';

  // Cookies know no port: one left by a server on another port would send the panel there.
  function setServer() {
    const paths = ['/', '/ohif', '/ohif/'];
    const here = location.pathname.replace(/\/[^/]*$/, '');
    if (here && !paths.includes(here)) {
      paths.push(here);
    }
    for (const path of paths) {
      document.cookie = 'MONAILABEL_SERVER_URL=; path=' + path + '; max-age=0';
    }
    document.cookie = 'MONAILABEL_SERVER_URL=' + encodeURIComponent(location.origin + '/') + '; path=/ohif; samesite=strict';
  }

  function openStudy() {
    const studies = new URLSearchParams(location.search).get('StudyInstanceUIDs') || '';
    const first = studies.split(',')[0];
    return /^[0-9.]+$/.test(first) ? first : null;
  }

  function addLink() {
    const link = document.createElement('a');
    link.id = 'app-cdm-tagging';
    link.textContent = 'Tag / accept';
    link.title = 'Tag this study and accept masks (opens another tab)';
    link.target = '_blank';
    link.rel = 'noopener';
    link.style.cssText =
      'position:fixed;left:12px;bottom:8px;z-index:20;padding:3px 10px;border-radius:4px;font:13px sans-serif;' +
      'color:#fff;background:#1a3f7e;opacity:.85;text-decoration:none';
    const update = function () {
      const study = openStudy();
      link.href = study ? '/tagging/?study=' + encodeURIComponent(study) : '/tagging/';
      link.hidden = !study;
    };
    link.addEventListener('mousedown', update);
    link.addEventListener('click', update);
    // The viewer changes its address without loading a page, and without an event that others can hear.
    setInterval(update, 500);
    update();
    document.body.append(link);
  }

  setServer();
  document.addEventListener('DOMContentLoaded', addLink);
})();

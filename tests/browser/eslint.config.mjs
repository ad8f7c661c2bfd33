// Rules for omnijet/canvas.js: npx eslint@9 --config tests/browser/eslint.config.mjs omnijet/canvas.js
const browser = [
  "Blob",
  "MutationObserver",
  "ResizeObserver",
  "URL",
  "document",
  "getComputedStyle",
  "requestAnimationFrame",
  "setTimeout",
  "window",
];

export default [
  {
    languageOptions: {
      ecmaVersion: 2022,
      sourceType: "module",
      globals: Object.fromEntries(browser.map((name) => [name, "readonly"])),
    },
    rules: {
      "array-callback-return": "error",
      eqeqeq: "error",
      "max-len": ["error", { code: 100, tabWidth: 2 }],
      "no-dupe-keys": "error",
      "no-redeclare": "error",
      "no-shadow": "error",
      "no-undef": "error",
      "no-unreachable": "error",
      "no-unused-expressions": "error",
      "no-unused-vars": "error",
      "no-var": "error",
      "prefer-const": "error",
      semi: "error",
    },
  },
];

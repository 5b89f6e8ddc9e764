SET LOCAL ROLE sluice_definer;
DROP FUNCTION taskmaster.seed_demo(text, text);

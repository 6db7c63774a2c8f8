"""`count_rows` counts rows and removes definers in the output of mariadb-dump."""

import io

import pytest

from stack.backup.dump import count_rows
from utils.errors import StackError

DUMP = b"""USE `evergreen`;
CREATE TABLE `load_batch` (
  `model` varchar(48) NOT NULL
) ENGINE=InnoDB
 PARTITION BY RANGE  COLUMNS(`model`)
(PARTITION `p_later` VALUES LESS THAN (MAXVALUE) ENGINE = InnoDB);
INSERT INTO `load_batch` VALUES
(1,'a\\n(b'),
(2,'/*!50017 DEFINER=`me`@`%`*/');
INSERT INTO `load_batch` VALUES
(3,'c');
USE `mlflow`;
CREATE TABLE `empty` (
);
DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`me`@`%`*/ /*!50003 TRIGGER t BEFORE INSERT ON `empty` FOR EACH ROW
INSERT INTO `load_batch` SELECT
(1) */;;
DELIMITER ;
CREATE TABLE `after` (
);
INSERT INTO `after` VALUES
(1);
/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */
"""


def test_rows_are_counted_per_table_and_other_lines_are_not() -> None:
    out = io.BytesIO()
    assert count_rows(io.BytesIO(DUMP), out) == {"evergreen.load_batch": 3, "mlflow.empty": 0, "mlflow.after": 1}


def test_the_definer_of_a_trigger_or_a_view_is_removed_and_rows_are_unchanged() -> None:
    out = io.BytesIO()
    count_rows(io.BytesIO(DUMP), out)
    expected = DUMP.replace(b"DEFINER=`me`@`%`*/ /*!50003", b"*/ /*!50003").replace(b"DEFINER=`root`@`localhost`", b"")
    assert out.getvalue() == expected
    assert b"(2,'/*!50017 DEFINER=`me`@`%`*/');" in out.getvalue()


def test_an_insert_with_several_rows_in_one_line_is_rejected() -> None:
    with pytest.raises(StackError, match="can't be counted"):
        count_rows(io.BytesIO(b"CREATE TABLE `t` (\nINSERT INTO `t` VALUES (1),(2);\n"), io.BytesIO())
